"""Which checkpoints stay, and what an evaluation's metadata file records of one that does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from apr.files import write_json
from apr.train.checkpoint.paths import best_of, metadata_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from apr.train.checkpoint.paths import Checkpoint
    from apr.train.config import PretrainConfig


def prune(
    checkpoints: list[Checkpoint], config: PretrainConfig, val_losses: Sequence[float]
) -> list[Checkpoint]:
    """Remove the checkpoints that --keep does not ask for, and return the others.

    Those of the last few evaluations stay, the last few of --save-every, the best one and the latest of all.
    A checkpoint that a signal caused goes once there is a later one. The metadata file of a removed one stays
    and says so.

    Args:
        checkpoints: in the order of their steps.
        config: the options of the run.
        val_losses: the held-out loss of each evaluation.
    """
    evaluated = [c for c in checkpoints if c.epoch is not None]
    within = [c for c in checkpoints if c.epoch is None and config.saves_on_the_way(c.step)]
    # The latest of all stays even if no rule asks for it: it is what --resume continues from.
    needed = {c.path for c in (*evaluated[-config.keep :], *within[-config.keep :], *checkpoints[-1:])}
    best = best_of(checkpoints, val_losses)
    if best is not None:
        needed.add(best.path)
    kept = []
    for checkpoint in checkpoints:
        if checkpoint.path in needed:
            kept.append(checkpoint)
            continue
        # Marked first: a process killed between the two leaves a file that the next run prunes.
        mark(checkpoint.path, "pruned")
        checkpoint.path.unlink()
    return kept


def mark(checkpoint: Path, state: str) -> None:
    """Set a key of an evaluation's metadata file to true; do nothing if it cannot be read.

    Args:
        checkpoint: path of the checkpoint.
        state: the key, "pruned" or "damaged".
    """
    path = metadata_path(checkpoint)
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    write_json(path, {**metadata, state: True})

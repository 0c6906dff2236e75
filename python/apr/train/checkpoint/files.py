"""The checkpoint files of a run directory: their names, which there are, and which stay."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.container.load import load
from apr.errors import AprError, RefusedError, message
from apr.files import write_json
from apr.train.checkpoint.state import state_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from apr.train.config import PretrainConfig

_NAME = re.compile(r"(epoch|step)-\d+\.apr")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a run directory."""

    path: Path
    step: int
    epoch: int | None
    """Of an epoch's file, from 0; None for one that was saved on the way."""

    @property
    def metadata_path(self) -> Path:
        """The JSON file beside it."""
        return self.path.with_suffix(".metadata.json")


def epoch_path(run_dir: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch goes."""
    return run_dir / "ckpt" / f"epoch-{epoch:03}.apr"


def step_path(run_dir: Path, step: int) -> Path:
    """Where a checkpoint on the way goes."""
    return run_dir / "ckpt" / f"step-{step:08}.apr"


def list_checkpoints(run_dir: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints of a run, the furthest last; and files under their names that are none, and why not.

    Only the structure of the files is looked at.
    """
    found, broken = [], {}
    for path in sorted((run_dir / "ckpt").glob("*.apr")):
        kind = _NAME.fullmatch(path.name)
        if kind is None:
            continue
        try:
            with load(path) as file:
                state = state_of(file)
        except (AprError, RefusedError, OSError) as error:
            broken[path] = message(error)
            continue
        found.append(Checkpoint(path, state.step, state.epochs - 1 if kind[1] == "epoch" else None))
    # At the same step, an epoch's file knows the evaluation too.
    return sorted(found, key=lambda c: (c.step, c.epoch is not None)), broken


def best_of(checkpoints: Sequence[Checkpoint], val_losses: Sequence[float]) -> Checkpoint | None:
    """Of the epoch with the lowest held-out loss, among those that are there.

    Args:
        checkpoints: in the order of their steps; those on the way do not count.
        val_losses: of each epoch, from 0.
    """
    of_epochs = [(val_losses[c.epoch], c) for c in checkpoints if c.epoch is not None]
    return min(of_epochs, key=lambda pair: pair[0])[1] if of_epochs else None


def mark(checkpoint: Path, what: str) -> None:
    """Have an epoch's metadata file say what became of its checkpoint; nothing where there is none."""
    path = checkpoint.with_suffix(".metadata.json")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    write_json(path, {**facts, what: True})


def prune(
    checkpoints: list[Checkpoint], config: PretrainConfig, val_losses: Sequence[float]
) -> list[Checkpoint]:
    """Remove what --keep does not ask for; what is left.

    Of the epochs' files and of those that --save-every asks for, the last few stay, and the best epoch's. One
    that was saved because of a signal goes when there is a later one. An epoch's metadata file stays and says
    that its checkpoint went.
    """
    of_epochs = [c for c in checkpoints if c.epoch is not None]
    on_the_way = [c for c in checkpoints if c.epoch is None and config.saves_on_the_way(c.step)]
    last = [*of_epochs[-config.keep :], *on_the_way[-config.keep :], *checkpoints[-1:]]
    best = best_of(checkpoints, val_losses)
    wanted = {c.path for c in [*last, *([best] if best else [])]}
    kept = []
    for checkpoint in checkpoints:
        if checkpoint.path in wanted:
            kept.append(checkpoint)
            continue
        mark(checkpoint.path, "pruned")
        checkpoint.path.unlink()
    return kept

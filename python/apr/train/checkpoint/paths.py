"""The checkpoint files of a run directory: their names, and which ones there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.container.load import load
from apr.errors import AprError, RefusedError, message
from apr.train.checkpoint.state import state_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CHECKPOINTS = "ckpt"
_NAME = re.compile(r"(epoch|step)-\d+\.apr")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a run directory."""

    path: Path
    step: int
    """Number of steps done before it."""
    epoch: int | None
    """Number of its evaluation, from 0, which the file's name calls an epoch; None between evaluations."""

    @property
    def metadata_path(self) -> Path:
        """The JSON file beside an evaluation's checkpoint."""
        return metadata_path(self.path)


def epoch_path(run_dir: Path, epoch: int) -> Path:
    """Return the path of the checkpoint of an evaluation. The name is that of the ecosystem's tool."""
    return run_dir / CHECKPOINTS / f"epoch-{epoch:03}.apr"


def step_path(run_dir: Path, step: int) -> Path:
    """Return the path of a checkpoint between evaluations."""
    return run_dir / CHECKPOINTS / f"step-{step:08}.apr"


def metadata_path(checkpoint: Path) -> Path:
    """Return the path of the JSON file beside an evaluation's checkpoint."""
    return checkpoint.with_suffix(".metadata.json")


def list_checkpoints(run_dir: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """Return a run's checkpoints, the latest last, and the files that are damaged, with the reason.

    Only the structure of the files is checked, not every byte.
    """
    checkpoints, damaged = [], {}
    for path in sorted((run_dir / CHECKPOINTS).glob("*.apr")):
        name = _NAME.fullmatch(path.name)
        # Other files may lie here, such as what a user copied; they are neither resumed from nor pruned.
        if name is None:
            continue
        try:
            with load(path) as file:
                state = state_of(file)
        except (AprError, RefusedError, OSError) as error:
            damaged[path] = message(error)
            continue
        checkpoints.append(Checkpoint(path, state.step, state.epochs - 1 if name[1] == "epoch" else None))
    # A run that was interrupted during an evaluation and resumed may have two files of that step. The one
    # with the evaluation comes last.
    return sorted(checkpoints, key=lambda c: (c.step, c.epoch is not None)), damaged


def best_of(checkpoints: Sequence[Checkpoint], val_losses: Sequence[float]) -> Checkpoint | None:
    """Return the checkpoint of the evaluation with the lowest held-out loss, of those that exist.

    Args:
        checkpoints: in the order of their steps; those between evaluations do not count.
        val_losses: the held-out loss of each evaluation.
    """
    evaluated = [(val_losses[c.epoch], c) for c in checkpoints if c.epoch is not None]
    # Of equal losses the earlier one's, as `RunState.add_evaluation` decides.
    return min(evaluated, key=lambda pair: pair[0])[1] if evaluated else None

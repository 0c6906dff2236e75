"""Resuming a run: which checkpoints are usable, and cutting the run's files back to the last one."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.errors import AprError, RefusedError, message
from apr.model.fill import first_implausible
from apr.model.names import TRAINING_PREFIX
from apr.train import rundir
from apr.train.checkpoint.paths import CHECKPOINTS, Checkpoint, best_of, list_checkpoints
from apr.train.checkpoint.pruning import mark
from apr.train.checkpoint.state import state_of
from apr.train.record.metrics import cut_back, read_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from apr.train.checkpoint.state import RunState
    from apr.train.record.report import Report

# Suffix of the files that a killed process was writing.
_TEMPORARY = ".apr-tmp"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoints of a run that is resumed. A run that was killed early has none."""

    checkpoints: list[Checkpoint]
    """The usable ones, the latest last. Every byte of the latest and of the best one was verified."""
    damaged: dict[Path, str]
    """The unusable ones, with the reason."""

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint to resume from; None to start from the first step."""
        return self.checkpoints[-1] if self.checkpoints else None


def find_resume_point(run_dir: Path) -> ResumePoint:
    """Return the usable checkpoints of a run. Nothing is written.

    Every byte of the checkpoint to resume from is verified, and its weights are checked: those of a run that
    exploded are not usable.

    Raises:
        RefusedError: there are checkpoints, but none is usable.
    """
    checkpoints, damaged = list_checkpoints(run_dir)
    # From the latest back to the first one that is usable.
    while checkpoints:
        try:
            with load(checkpoints[-1].path, verify="full") as file:
                state = state_of(file)
                weights = ((name, file[name]) for name in file if not name.startswith(TRAINING_PREFIX))
                # A valid CRC says nothing about values: infinite weights were once saved as the last good
                # state.
                spoiled_weights = first_implausible(weights)
        except (AprError, RefusedError, OSError) as error:
            damaged[checkpoints.pop().path] = message(error)
            continue
        if spoiled_weights is not None:
            path = checkpoints.pop().path
            damaged[path] = f"{path}: the weights are from a run that diverged: {spoiled_weights}"
            continue
        # `result.json` will name the best checkpoint, so it must be whole too.
        while (best := best_of(checkpoints, state.val_loss_history)) not in {None, checkpoints[-1]}:
            assert best is not None
            try:
                load(best.path, verify="full").close()
            except (AprError, OSError) as error:
                damaged[best.path] = message(error)
                checkpoints.remove(best)
            else:
                break
        return ResumePoint(checkpoints, damaged)
    if damaged:
        raise RefusedError(
            f"{run_dir}: no usable checkpoint ({'; '.join(damaged.values())}); "
            "restore one, or pass --force to start over",
            path=run_dir,
        )
    return ResumePoint(checkpoints, damaged)


def seconds_before(run_dir: Path) -> float:
    """Return the seconds that the earlier parts of a run took, lost steps included.

    The part of a process that was killed counts until its last record.
    """
    # The larger of both clocks: a killed part has records but no result, an interrupted one took longer than
    # its last record says.
    candidates: list[Any] = [0.0]
    metrics = run_dir / rundir.METRICS
    if metrics.exists():
        candidates += [record.get("wall_seconds") for record in read_metrics(metrics)[-1:]]
    with suppress(OSError, ValueError, KeyError, TypeError):  # a process that was killed wrote no result
        candidates.append(json.loads((run_dir / rundir.RESULT).read_text(encoding="utf-8"))["wall_seconds"])
    return max(float(seconds) for seconds in candidates if isinstance(seconds, (int, float)))


def cut_back_to(run_dir: Path, point: ResumePoint, state: RunState, report: Report) -> None:
    """Bring a run's files to where its last checkpoint is, and set damaged checkpoints aside.

    Args:
        run_dir: the run directory.
        point: the checkpoints of the run.
        state: the state that the run resumes with.
        report: prints what was done.
    """
    for path, reason in point.damaged.items():
        # Renamed, not removed, so that it can be examined. Under the new name it no longer matches `*.apr`.
        aside = path.replace(path.with_name(f"{path.name}.damaged"))
        # The artefacts gate then names the file as damaged, and the run does not end as if all were there.
        mark(path, "damaged")
        report.line(f"renamed a damaged checkpoint to {aside.name}: {reason}")
    for leftover in (run_dir / CHECKPOINTS).glob(f".*{_TEMPORARY}"):
        # The run directory is claimed, so that nobody is still writing them.
        leftover.unlink(missing_ok=True)

    def is_in_checkpoint(record: dict[str, Any]) -> bool:
        if point.last is None:
            return False
        if "train_loss" in record:
            return bool(record["step"] < state.step)
        # The evaluation before the first step comes before all checkpoints.
        return bool(record["step"] <= state.evaluated_step)

    # Steps after the checkpoint are taken again, and would have two records.
    cut_back(run_dir / rundir.METRICS, is_in_checkpoint)
    if (run_dir / rundir.SAMPLES).exists():
        cut_back(run_dir / rundir.SAMPLES, is_in_checkpoint)
    if point.last is None:
        report.line("no checkpoint was written yet; starting from step 0")
    else:
        report.line(f"resumed at step {state.step} from {point.last.path.name}")

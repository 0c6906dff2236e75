"""Taking up a run: what its directory holds to go on from, and bringing its files to where that is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.errors import AprError, RefusedError, WeightsError, message
from apr.model.fill import spoiled
from apr.model.names import TRAINING_PREFIX
from apr.train import rundir
from apr.train.checkpoint.files import Checkpoint, best_of, list_checkpoints, mark
from apr.train.checkpoint.state import state_of
from apr.train.record.metrics import cut_back, read_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from apr.container.tensor_file import TensorFile
    from apr.train.checkpoint.state import RunState
    from apr.train.record.report import Report

# Ends the names of checkpoints that a killed process was writing.
_BEING_WRITTEN = ".apr-tmp"


@dataclass(frozen=True)
class Found:
    """The checkpoints of a run that is taken up; none of one that was killed before it had any."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    """The furthest last; of that one and of the best one every byte was verified."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Those that cannot be used, and why not."""

    @property
    def last(self) -> Checkpoint | None:
        """The one to go on from."""
        return self.checkpoints[-1] if self.checkpoints else None


def find(run_dir: Path) -> Found:
    """The checkpoints of a run, without those that cannot be gone on from; nothing is written.

    Of the one to go on from, every byte is verified, and that its weights are such as models have: those of a
    run that exploded are not.

    Raises:
        RefusedError: there are some, and none to go on from.
    """
    there, damaged = list_checkpoints(run_dir)
    found = Found(there, damaged)
    while found.last is not None:
        try:
            with load(found.last.path, verify="full") as file:
                state = state_of(file)
                _check_weights(file)
        except (AprError, WeightsError, OSError) as error:
            damaged[there.pop().path] = message(error)
            continue
        _pass_over_damaged_best(found, state.val_loss_history)
        return found
    if damaged:
        raise RefusedError(
            f"{run_dir}: no checkpoint can be gone on from ({'; '.join(damaged.values())}): "
            "bring one back, or take --force to start anew"
        )
    return found


def _check_weights(file: TensorFile) -> None:
    problem = spoiled((name, file[name]) for name in file if not name.startswith(TRAINING_PREFIX))
    if problem is not None:
        raise WeightsError(f"{file.path}: weights of a run that exploded: {problem}")


def _pass_over_damaged_best(found: Found, val_losses: list[float]) -> None:
    while (best := best_of(found.checkpoints, val_losses)) not in {None, found.last}:
        assert best is not None
        try:
            load(best.path, verify="full").close()
        except (AprError, OSError) as error:
            found.damaged[best.path] = message(error)
            found.checkpoints.remove(best)
            continue
        return


def seconds_before(run_dir: Path) -> float:
    """Seconds that the run's parts took, whether or not what they did was kept.

    Of a part that was killed they are counted to its last record.
    """
    metrics = run_dir / rundir.METRICS
    said = [record.get("wall_seconds") for record in read_metrics(metrics)[-1:]] if metrics.exists() else []
    with suppress(OSError, ValueError, KeyError, TypeError):  # a part that was killed wrote none
        said.append(json.loads((run_dir / rundir.RESULT).read_text(encoding="utf-8"))["wall_seconds"])
    return max((seconds for seconds in said if isinstance(seconds, (int, float))), default=0.0)


def settle(run_dir: Path, found: Found, state: RunState, report: Report) -> None:
    """Bring a run's files to where the checkpoint is; what is damaged is set aside."""
    for path, reason in found.damaged.items():
        aside = path.replace(path.with_name(f"{path.name}.damaged"))
        mark(path, "damaged")
        report.line(f"damaged, set aside as {aside.name}: {reason}")
    for left in (run_dir / "ckpt").glob(f".*{_BEING_WRITTEN}"):
        left.unlink(missing_ok=True)

    def known(record: dict[str, Any]) -> bool:
        # An evaluation belongs to the state if its epoch is counted; that of step 0 comes before all.
        return found.last is not None and record["step"] < (
            state.step if "train_loss" in record else state.evaluated_step + 1
        )

    cut_back(run_dir / rundir.METRICS, known)
    name = "the start: no checkpoint was written" if found.last is None else found.last.path.name
    report.line(f"resumed at step {state.step} from {name}")

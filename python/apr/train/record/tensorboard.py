"""`--tensorboard`: the numbers of `train.jsonl` as event files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from apr.errors import UnavailableError
from apr.train.record.callbacks import Callbacks, EvaluationRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STEP_SCALARS = ("train_loss", "grad_norm", "lr", "tokens_per_sec", "gpu_util_pct", "mfu")
_EVALUATION_SCALARS = ("val_loss", "val_ppl")


def check_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        UnavailableError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UnavailableError(
            "--tensorboard: tensorboard is not installed; run pip install 'apr[tensorboard]' "
            "(in a checkout: uv pip install '.[tensorboard]')"
        )


class EventFiles:
    """Event files in a directory, with a scalar for each number of a record.

    Args:
        directory: where the files are written.
        first_step: the step that the run starts or resumes at. TensorBoard drops what an earlier part of the
            run wrote from there on.
        records: the records of `train.jsonl` so far.
    """

    def __init__(self, directory: Path, *, first_step: int, records: Sequence[dict[str, Any]] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first_step)
        # Purging takes the evaluation at `first_step` as well, which the run does not repeat.
        for record in records:
            if record["step"] == first_step and "val_loss" in record:
                for name in _EVALUATION_SCALARS:
                    self._writer.add_scalar(f"held_out/{name}", record[name], first_step)
        self.callbacks = Callbacks(on_step=self._on_step, on_evaluation=self._on_evaluation)

    def close(self) -> None:
        """Write what is still in memory, and end the writer's thread."""
        self._writer.close()

    def _on_step(self, record: StepRecord) -> None:
        self._write("train", record, _STEP_SCALARS)

    def _on_evaluation(self, record: EvaluationRecord) -> None:
        self._write("held_out", record, _EVALUATION_SCALARS)
        # SummaryWriter flushes by itself only every two minutes.
        self._writer.flush()

    def _write(self, group: str, record: StepRecord | EvaluationRecord, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(record, name)
            if value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, record.step)

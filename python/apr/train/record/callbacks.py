"""What a run tells the program that started it: records of steps, evaluations and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step, as `train.jsonl` has it."""

    step: int
    """From 0."""
    train_loss: float
    """Mean over all tokens of the step, before its update, nats."""
    grad_norm: float
    """Of all gradients, before clipping."""
    lr: float
    device: str
    """On which it was computed: a resumed run may go on on another one."""
    tokens_per_sec: float
    gpu_util_pct: float | None
    """None without a GPU."""
    mfu: float | None
    """Share of the device's peak FLOP/s, by `needs.flops_a_token`; None where the peak is not known."""
    tokens_seen: int
    """With this step's."""
    wall_seconds: float
    """Since the run began, over all parts of a resumed one."""
    loss_limit: float | None
    """A loss above it is a spike; None before there are enough steps to tell."""
    spike: bool
    updated: bool
    """False where a spike was skipped or the numbers were bad: the weights are as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """An evaluation, as `train.jsonl` has it."""

    step: int
    """Steps done by then."""
    val_loss: float
    """Mean cross entropy of a held-out token, nats."""
    val_ppl: float
    val_tokens: int
    tokens_seen: int
    wall_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint that was written, read back and verified."""

    step: int
    """Steps done by then."""
    epoch: int | None
    """Of an epoch's checkpoint, from 0; None for one that was saved on the way."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that a run calls in its own thread, in order; None for those that are not wanted.

    One that raises ends the run with status FAILED; what was saved by then stays.
    """

    on_step: Callable[[StepRecord], object] | None = None
    on_evaluation: Callable[[EvaluationRecord], object] | None = None
    on_checkpoint: Callable[[CheckpointRecord], object] | None = None

    def send(self, record: StepRecord | EvaluationRecord | CheckpointRecord) -> None:
        """Call the function for such a record."""
        if isinstance(record, StepRecord):
            if self.on_step is not None:
                self.on_step(record)
        elif isinstance(record, EvaluationRecord):
            if self.on_evaluation is not None:
                self.on_evaluation(record)
        elif self.on_checkpoint is not None:
            self.on_checkpoint(record)

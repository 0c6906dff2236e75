"""What a run reports to the program that started it: records of steps, evaluations and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step, with the fields that its line in `train.jsonl` has."""

    step: int
    """Number of the step, from 0."""
    train_loss: float
    """Mean over all tokens of the step, before its update, in nats."""
    grad_norm: float
    """Norm of all gradients together, before clipping."""
    lr: float
    device: str
    """The device that computed it; a resumed run may use another one."""
    tokens_per_sec: float
    """Of all ranks together."""
    slowest_rank_seconds: float | None
    """How long the step took on the slowest rank; None for a run in one process."""
    gpu_util_pct: float | None
    """None without a GPU."""
    mfu: float | None
    """Fraction of the device's peak FLOP/s, from `Needs.flops_per_token`; None if the peak is not known."""
    tokens_seen: int
    """Number of tokens trained on, those of this step included."""
    wall_seconds: float
    """Seconds since the run began, over all parts of a resumed run."""
    loss_limit: float | None
    """A loss above it is a spike; None before there are enough steps to tell."""
    spike: bool
    updated: bool
    """False if a spike was skipped or the numbers were bad: the weights are as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """An evaluation, with the fields that its line in `train.jsonl` has."""

    step: int
    """Number of steps done before it."""
    val_loss: float
    """Mean cross entropy of a held-out token, in nats."""
    val_ppl: float
    val_tokens: int
    tokens_seen: int
    wall_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint that was written, read back and verified."""

    step: int
    """Number of steps done before it."""
    epoch: int | None
    """Number of its evaluation, from 0, as in `epoch-000.apr`; None for a checkpoint between evaluations."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that a run calls in its own thread, in order; None where none is wanted.

    A function that raises ends the run with status FAILED; what was saved before stays.
    """

    on_step: Callable[[StepRecord], object] | None = None
    on_evaluation: Callable[[EvaluationRecord], object] | None = None
    on_checkpoint: Callable[[CheckpointRecord], object] | None = None

    def send(self, record: StepRecord | EvaluationRecord | CheckpointRecord) -> None:
        """Call the function for this kind of record."""
        if isinstance(record, StepRecord):
            if self.on_step is not None:
                self.on_step(record)
        elif isinstance(record, EvaluationRecord):
            if self.on_evaluation is not None:
                self.on_evaluation(record)
        elif self.on_checkpoint is not None:
            self.on_checkpoint(record)

"""Each thing that happens in a run, once: a line of `train.jsonl`, a line for people, a call for programs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Self

from apr.duration import format_duration
from apr.train import rundir
from apr.train.machine.device import Utilization, peak_flops
from apr.train.record.callbacks import CheckpointRecord, EvaluationRecord, StepRecord
from apr.train.record.metrics import MetricsFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import torch

    from apr.train.checkpoint.files import Checkpoint
    from apr.train.checkpoint.state import RunState
    from apr.train.config import Precision, PretrainConfig
    from apr.train.evaluation import Evaluation
    from apr.train.record.callbacks import Callbacks
    from apr.train.record.report import Report
    from apr.train.step import StepOutcome

# Steps whose time says how long the rest will take.
_RECENT_STEPS = 20


class Recorder:
    """Within it, `train.jsonl` is open and records go to it."""

    def __init__(
        self,
        config: PretrainConfig,
        device: torch.device,
        precision: Precision,
        flops_a_token: int,
        report: Report,
        callbacks: Sequence[Callbacks],
        *,
        started: float,
    ) -> None:
        self._config, self._device, self._flops_a_token = config, device, flops_a_token
        self._report, self._callbacks = report, callbacks
        self._utilization = Utilization(device)
        self._peak_flops = peak_flops(device, precision)
        self._started = started
        self._step_seconds: list[float] = []
        self._evaluation_seconds = 0.0
        self.wall_before = 0.0
        """Seconds of the run's earlier parts, with what was lost of them."""

    def __enter__(self) -> Self:
        self._metrics = MetricsFile(self._config.run_dir / rundir.METRICS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()

    @property
    def wall(self) -> float:
        """Seconds since `pretrain` was called, and those of the run's earlier parts."""
        return round(self.wall_before + time.monotonic() - self._started, 3)

    def step(self, state: RunState, made: StepOutcome, lr: float, seconds: float, **more: object) -> None:
        """Record a step.

        Args:
            state: before it is counted.
            made: what came of it.
            lr: its learning rate.
            seconds: what it took.
            more: further fields of its line in `train.jsonl`.
        """
        self._step_seconds = [*self._step_seconds, seconds][-_RECENT_STEPS:]
        speed = self._config.tokens_per_step / seconds
        flops, limit = self._flops_a_token * speed, state.loss_limit
        record = StepRecord(
            step=state.step,
            train_loss=made.train_loss,
            grad_norm=made.grad_norm,
            lr=lr,
            device=str(self._device),
            tokens_per_sec=round(speed, 3),
            gpu_util_pct=self._utilization.percent(),
            mfu=None if self._peak_flops is None else round(flops / self._peak_flops, 4),
            tokens_seen=state.tokens_seen + self._config.tokens_per_step,
            wall_seconds=self.wall,
            loss_limit=limit,
            spike=limit is not None and made.train_loss > limit,
            updated=made.updated,
        )
        self._metrics.write({**asdict(record), **more})
        self._show_step(record)
        self._send(record)

    def evaluation(self, state: RunState, made: Evaluation, when: str, seconds: float) -> None:
        """Record an evaluation that took so many seconds."""
        self._evaluation_seconds = seconds
        record = EvaluationRecord(
            step=state.step,
            val_loss=made.val_loss,
            val_ppl=made.val_ppl,
            val_tokens=made.val_tokens,
            tokens_seen=state.tokens_seen,
            wall_seconds=self.wall,
        )
        self._metrics.write(asdict(record))
        self._report.line(
            f"{when}: held-out loss {made.val_loss:.4f} (perplexity {made.val_ppl:.2f}) "
            f"over {made.val_tokens:,} tokens in {seconds:.1f} s"
        )
        self._send(record)

    def checkpoint(self, written: Checkpoint) -> None:
        """Tell of a checkpoint that was written, read back and verified."""
        name = written.path.relative_to(self._config.run_dir)
        self._report.line(f"wrote {name}: step {written.step}, read back and verified")
        self._send(CheckpointRecord(step=written.step, epoch=written.epoch, path=written.path))

    def _show_step(self, record: StepRecord) -> None:
        done, planned = record.step + 1, self._config.num_steps
        if record.spike:
            what = "" if record.updated else ": nothing was updated from it"
            self._report.line(
                f"spike at step {record.step}: loss {record.train_loss:.4f} is above "
                f"{record.loss_limit:.4f}, 6 standard deviations over the mean of the last 100{what}"
            )
        mfu = "" if record.mfu is None else f"  mfu {record.mfu:.1%}"
        self._report.progress(
            f"step {done}/{planned}  loss {record.train_loss:.4f}  grad norm {record.grad_norm:.2f}  "
            f"lr {record.lr:.2e}  {record.tokens_per_sec:,.0f} tokens/s{mfu}  {self._time_left(done)} left",
            done,
            planned,
            due=done == planned or done % self._config.steps_per_epoch == 0,
        )

    def _time_left(self, done: int) -> str:
        mean = sum(self._step_seconds) / len(self._step_seconds)
        evaluations = self._config.epochs - (done - 1) // self._config.steps_per_epoch
        return format_duration(
            mean * (self._config.num_steps - done) + self._evaluation_seconds * evaluations
        )

    def _send(self, record: StepRecord | EvaluationRecord | CheckpointRecord) -> None:
        for callbacks in self._callbacks:
            callbacks.send(record)

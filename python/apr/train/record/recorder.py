"""Each event of a run, recorded once: a line of `train.jsonl`, a line for people, a call for programs."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apr.duration import format_duration
from apr.plurals import counted
from apr.train import rundir
from apr.train.machine.device import Utilization, peak_flops, why_slow
from apr.train.parallel.world import ALONE, World
from apr.train.record.callbacks import CheckpointRecord, EvaluationRecord, StepRecord
from apr.train.record.metrics import MetricsFile, perplexity
from apr.train.record.pace import Pace

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from apr.train.config import ResolvedConfig
    from apr.train.record.callbacks import Callbacks
    from apr.train.record.report import Report
    from apr.train.sampler import Sample
    from apr.train.step import StepOutcome

# The time that is left is estimated from this many steps: a resumed run may have another speed than before.
_RECENT_STEPS = 20


class Recorder:
    """Records steps, evaluations and checkpoints; within the context, `train.jsonl` is open.

    Args:
        config: the options of the run.
        device: the device that it computes on.
        flops_per_token: FLOPs of one token, forward and backward.
        report: prints the lines for people.
        started: `time.monotonic()` of when the run began.
        world: the ranks of the run. Those that do not lead write nothing.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        device: torch.device,
        flops_per_token: int,
        report: Report,
        *,
        started: float,
        world: World = ALONE,
    ) -> None:
        self._config, self._device, self._flops_per_token = config, device, flops_per_token
        self._report, self._world = report, world
        # Raises before the first step if the GPU's driver does not measure: the metrics gate needs the
        # number.
        self._utilization = Utilization(device)
        self._peak_flops = peak_flops(device, config.precision)
        self._started = started
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._pace = Pace()
        self._evaluation_seconds = 0.0
        self.seconds_before = 0.0
        """Seconds of the run's earlier parts, those of steps that were lost included."""
        self.callbacks: list[Callbacks] = []
        """Each is called for every record."""

    def __enter__(self) -> Self:
        self._metrics = MetricsFile(
            self._config.run_dir / rundir.METRICS if self._world.leads else Path(os.devnull)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()

    @property
    def wall_seconds(self) -> float:
        """Seconds since `pretrain` was called, and those of the run's earlier parts."""
        return round(self.seconds_before + time.monotonic() - self._started, 3)

    def step(
        self,
        step: int,
        outcome: StepOutcome,
        *,
        lr: float,
        loss_limit: float | None,
        tokens_seen: int,
        seconds: float,
        windows: list[int] | None = None,
    ) -> None:
        """Record a step.

        Args:
            step: number of the step, from 0.
            outcome: what it measured.
            lr: its learning rate.
            loss_limit: a loss above it is a spike, in nats.
            tokens_seen: number of tokens trained on, those of this step included.
            seconds: how long it took the slowest rank.
            windows: its training windows, written to `train.jsonl` if the numbers are bad.
        """
        self._step_seconds.append(seconds)
        slow = self._pace.add(seconds)
        if slow is not None:
            self._report.line(
                f"warning: steps take {slow:.3g} s, {slow / self._pace.fastest:.1f} times as long as before "
                f"({self._pace.fastest:.3g} s): {why_slow(self._device)}"
            )
        tokens_per_second = self._config.tokens_per_step / seconds
        mfu = None
        if self._peak_flops is not None:
            of_a_rank = tokens_per_second / self._world.size
            mfu = round(self._flops_per_token * of_a_rank / self._peak_flops, 4)
        record = StepRecord(
            step=step,
            train_loss=outcome.train_loss,
            grad_norm=outcome.grad_norm,
            lr=lr,
            device=str(self._device),
            tokens_per_sec=round(tokens_per_second, 3),
            slowest_rank_seconds=round(seconds, 6) if self._world.size > 1 else None,
            gpu_util_pct=self._utilization.percent(),
            mfu=mfu,
            tokens_seen=tokens_seen,
            wall_seconds=self.wall_seconds,
            loss_limit=loss_limit,
            spike=loss_limit is not None and outcome.train_loss > loss_limit,
            updated=outcome.updated,
        )
        # The file first: a callback that raises must not cost the record.
        self._metrics.write(asdict(record) if windows is None else {**asdict(record), "windows": windows})
        self._print_step(record)
        self._send(record)

    def evaluation(
        self, name: str, *, val_loss: float, val_tokens: int, step: int, tokens_seen: int, seconds: float
    ) -> None:
        """Record an evaluation.

        Args:
            name: begins its line for people, such as "after 300 steps".
            val_loss: mean cross entropy of a held-out token, in nats.
            val_tokens: number of held-out tokens.
            step: number of steps done.
            tokens_seen: number of tokens trained on.
            seconds: how long it took.
        """
        self._evaluation_seconds = seconds
        record = EvaluationRecord(
            step=step,
            val_loss=val_loss,
            val_ppl=perplexity(val_loss),
            val_tokens=val_tokens,
            tokens_seen=tokens_seen,
            wall_seconds=self.wall_seconds,
        )
        self._metrics.write(asdict(record))
        self._report.line(
            f"{name}: held-out loss {val_loss:.4f} (perplexity {record.val_ppl:.2f}) "
            f"over {counted(val_tokens, 'token')} in {seconds:.1f} s"
        )
        self._send(record)

    def sample(self, sample: Sample) -> None:
        """Record what the model made of --sample-prompt."""
        if not self._world.leads:
            return
        with closing(MetricsFile(self._config.run_dir / rundir.SAMPLES)) as samples:
            samples.write(asdict(sample))
        # One line, and no control characters: a model in training writes anything.
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in sample.prompt + sample.text
        )
        self._report.line(f"sample: {text}")

    def checkpoint(self, record: CheckpointRecord) -> None:
        """Record a checkpoint that was written, read back and verified."""
        name = record.path.relative_to(self._config.run_dir)
        self._report.line(f"wrote {name}: step {record.step}, read back and verified")
        self._send(record)

    def _print_step(self, record: StepRecord) -> None:
        config, done = self._config, record.step + 1
        if record.spike:
            skipped = "" if record.updated else "; the weights were not updated"
            self._report.line(
                f"spike at step {record.step}: loss {record.train_loss:.4f} is above "
                f"{record.loss_limit:.4f}, the mean of the last 100 plus 6 standard deviations{skipped}"
            )
        mfu = "" if record.mfu is None else f"  mfu {record.mfu:.1%}"
        seconds_per_step = sum(self._step_seconds) / len(self._step_seconds)
        # Those still to come, the one after this step included.
        evaluations = config.evaluations_after(record.step)
        left = seconds_per_step * (config.num_steps - done) + self._evaluation_seconds * evaluations
        self._report.progress(
            f"step {done}/{config.num_steps}  loss {record.train_loss:.4f}  "
            f"grad norm {record.grad_norm:.2f}  lr {record.lr:.2e}  "
            f"{record.tokens_per_sec:,.0f} tokens/s{mfu}  {format_duration(left)} left",
            done,
            config.num_steps,
            due=config.evaluates_after(done),
        )

    def _send(self, record: StepRecord | EvaluationRecord | CheckpointRecord) -> None:
        for callbacks in self.callbacks:
            callbacks.send(record)

"""Steps, evaluations and checkpoints, from a prepared run to its end."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container.file import load
from apr.data.loader import Loader, LoaderState, fingerprint
from apr.data.windows import TrainingOrder
from apr.errors import AprError, RefusedError, message
from apr.files import write_json
from apr.train import gates, rundir
from apr.train.callbacks import CheckpointRecord, EvaluationRecord, StepRecord
from apr.train.checkpoint import (
    Checkpoint,
    best_of,
    epoch_path,
    export_weights,
    list_checkpoints,
    mark,
    optimizer_digest,
    prune,
    restore,
    step_path,
)
from apr.train.device import Utilisation, computing, peak_flops
from apr.train.evaluation import Evaluation, evaluate, perplexity
from apr.train.loss import token_losses
from apr.train.metrics import MetricsFile, cut_back
from apr.train.optimizer import make_optimizer
from apr.train.report import clock
from apr.train.result import Gate, Status
from apr.train.saver import Saver
from apr.train.schedule import learning_rate
from apr.train.state import RunState
from apr.train.step import Step, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from apr.model.decoder import Decoder
    from apr.train.callbacks import Callbacks
    from apr.train.preflight import Prepared
    from apr.train.report import Report
    from apr.train.signals import StopRequest

# Relative difference of a batch's loss between the train and the eval path: same weights, same windows; only
# the order of rounding may differ.
_AGREEMENT = {"fp32": 1e-4, "bf16": 2e-2}
# Windows that a sentence names; the record has them all.
_NAMED_WINDOWS = 8
# Ends the names of checkpoints that a killed process was writing.
_BEING_WRITTEN = ".apr-tmp"


@dataclass(frozen=True)
class Ended:
    """The loop came to an end of its own."""

    status: Status
    detail: str


class DisagreementError(RefusedError):
    """The train and the eval path give different losses for the same batch."""


class Loop:
    """A model in training. `run` goes to the end; what it knows by then stands in its attributes."""

    def __init__(
        self,
        prepared: Prepared,
        model: Decoder,
        report: Report,
        stop: StopRequest,
        callbacks: Sequence[Callbacks] = (),
    ) -> None:
        self._prepared, self._config, self._model = prepared, prepared.config, model
        self._report, self._stop, self._callbacks = report, stop, callbacks
        self._dir = prepared.config.run_dir
        self._utilisation = Utilisation(prepared.device)
        self._peak_flops = peak_flops(prepared.device, prepared.precision)
        self._train = prepared.split.train
        self._cap = gates.first_cap(
            self._config.mode_defaults.first_val_loss_cap, prepared.model_config.vocab_size
        )
        self._saver = Saver(prepared.config, prepared.facts)
        self._damaged: dict[Path, str] = {}
        self._seconds: list[float] = []
        self._evaluation_seconds = 0.0
        self.state = RunState()
        self._disagreement: float | None = None
        self.finite = True
        self.exhausted = False
        self.wall_before = 0.0
        self.resumed_from: Path | None = None
        torch.manual_seed(self._config.seed)
        self._optimizer = make_optimizer(model, self._config)
        self._training_step = Step(
            model,
            self._optimizer,
            precision=prepared.precision,
            grad_clip=self._config.grad_clip,
            compiled=self._config.compile,
        )

    # what the result asks for

    @property
    def final_val_loss(self) -> float | None:
        """Held-out loss of the weights as they are at the end, if it was measured."""
        state = self.state
        return state.val_loss_history[-1] if state.epochs and state.evaluated_step == state.step else None

    @property
    def agreement(self) -> Gate:
        """Whether both ways gave the same loss for the first batch, of the run and of this process."""
        seen = [d for d in (self.state.agreement, self._disagreement) if d is not None]
        worst, allowed = max(seen, default=None), _AGREEMENT[self._prepared.precision]
        # NaN is for the numerics gate to name.
        return Gate("train_eval_agree", None if worst is None else not worst > allowed, worst, allowed)

    @property
    def last_checkpoint(self) -> Path | None:
        """The furthest one."""
        return self._saver.checkpoints[-1].path if self._saver.checkpoints else None

    @property
    def best_checkpoint(self) -> Path | None:
        """Of the epoch with the lowest held-out loss, among those that are there."""
        best = best_of(self._saver.checkpoints, self.state.val_loss_history)
        return None if best is None else best.path

    @property
    def best_checkpoint_loss(self) -> float | None:
        """Its held-out loss."""
        best = best_of(self._saver.checkpoints, self.state.val_loss_history)
        return None if best is None or best.epoch is None else self.state.val_loss_history[best.epoch]

    @property
    def windows_seen(self) -> int:
        """Training windows visited, again and again if the stream was cycled."""
        return self.state.step * self._config.windows_per_step

    @property
    def windows_allowed(self) -> int | None:
        """Training windows there are; None where the stream may be cycled."""
        return None if self._config.allow_shard_cycle else len(self._train)

    # the run

    def run(self) -> Ended:
        """Train to the end.

        Raises:
            Interrupted: a signal asked for it; nothing is saved yet.
            DisagreementError: the first batch's loss depends on the path.
        """
        self._started = time.monotonic()
        if self._config.resume:
            self._take_up_files()
        with MetricsFile(self._dir / rundir.METRICS) as metrics, self._batches() as loader:
            self._metrics, self._loader = metrics, loader
            try:
                ended = self._to_the_end()
            except Exception:  # a second signal alone does not wait
                self._saver.join()
                raise
        self._collect(self._saver.wait())
        return ended

    def _to_the_end(self) -> Ended:
        if self.state.initial_val_loss is None:
            self.state.initial_val_loss = self._evaluate("before the first step").val_loss
        ended = None
        if self._evaluation_is_due():
            ended = self._end_of_epoch()
        elif self.final_val_loss is not None:  # gone on from the end of an epoch: what ended it ends it again
            ended = self._epoch_gates()
        while ended is None and self.state.step < self._config.num_steps:
            self._stop.check()
            self._collect(self._saver.finished())
            ended = self._step()
            if ended is None and self._evaluation_is_due():
                ended = self._end_of_epoch()
            elif ended is None and self._config.saves_on_the_way(self.state.step):
                self._save(step_path(self._dir, self.state.step), epoch=None)
        return ended or self._budget_spent()

    def _batches(self) -> Loader:
        """The training windows that were not visited yet."""
        config = self._config
        epoch, position = divmod(self.windows_seen, len(self._train))
        state = LoaderState(fingerprint(self._train, shuffle=config.shuffle), epoch, position, config.seed)
        return Loader(
            self._train,
            config.batch_size,
            shuffle=config.shuffle,
            device=self._prepared.device,
            state=state,
        )

    def save_on_the_way(self) -> Path | None:
        """Save what was trained since the last checkpoint; where the latest state lies, None before any.

        Raises:
            AprError, OSError: it cannot be saved.
        """
        self._collect(self._saver.wait())
        if self.state.step == 0:
            return None
        last = self._saver.checkpoints[-1] if self._saver.checkpoints else None
        if last is None or last.step < self.state.step:
            self._save(step_path(self._dir, self.state.step), epoch=None)
            self._collect(self._saver.wait())
        return self.last_checkpoint

    def when_saved(self, then: Callable[[], None]) -> None:
        """Call `then` once no checkpoint is being written any more."""
        self._saver.when_ended(then)

    def abandon(self) -> None:
        """End at once: what is being written is given up."""
        self._saver.abandon()

    def export(self) -> None:
        """Write the weights alone, where --save-dtype asks for them.

        Raises:
            AprError, OSError: they cannot be written.
        """
        if self._config.save_dtype == "bf16":
            path = self._dir / rundir.EXPORT
            export_weights(path, self._model, self._prepared.facts, torch.bfloat16)
            self._report.line(f"wrote {path.name}: the weights in bfloat16, read back and verified")

    def take_up(self) -> None:
        """Restore the furthest checkpoint that verifies; nothing is written.

        Raises:
            RefusedError: there are checkpoints and none verifies; or they are of another run or other shards.
        """
        found, self._damaged = list_checkpoints(self._dir)
        while found:
            last = found[-1]
            try:
                self.state = restore(last.path, self._model, self._optimizer, self._prepared.facts)
            except (AprError, OSError) as error:
                self._damaged[last.path] = message(error)
                found.pop()
                continue
            self._pass_over_damaged_best(found)
            self._saver.checkpoints = found
            self.resumed_from = last.path
            return
        if self._damaged:
            reasons = "; ".join(self._damaged.values())
            raise RefusedError(
                f"{self._dir}: no checkpoint can be gone on from ({reasons}): "
                "bring one back, or take --force to start anew"
            )

    def _pass_over_damaged_best(self, found: list[Checkpoint]) -> None:
        """Take away from those found, of which the last was verified, a best one that is damaged."""
        while (best := best_of(found, self.state.val_loss_history)) not in {None, found[-1]}:
            assert best is not None
            try:
                load(best.path, verify="full").close()
            except (AprError, OSError) as error:
                self._damaged[best.path] = message(error)
                found.remove(best)
                continue
            return

    def _take_up_files(self) -> None:
        """Bring the run's files to where the checkpoint is; what is damaged is set aside."""
        for path, reason in self._damaged.items():
            aside = path.replace(path.with_name(f"{path.name}.damaged"))
            mark(path, "damaged")
            self._report.line(f"damaged, set aside as {aside.name}: {reason}")
        for left in (self._dir / "ckpt").glob(f".*{_BEING_WRITTEN}"):
            left.unlink(missing_ok=True)
        step, evaluated = self.state.step, self.state.evaluated_step

        def known(record: dict[str, Any]) -> bool:
            # An evaluation belongs to the state if its epoch is counted; that of step 0 comes before all.
            return bool(self._saver.checkpoints) and record["step"] < (
                step if "train_loss" in record else evaluated + 1
            )

        records = cut_back(self._dir / rundir.METRICS, known)
        self.wall_before = records[-1]["wall_seconds"] if records else 0.0
        last = self._saver.checkpoints[-1] if self._saver.checkpoints else None
        if last is not None and last.epoch is not None and not last.metadata_path.exists():
            sha = optimizer_digest(self._model, self._optimizer, step)
            write_json(last.metadata_path, {**self._epoch_facts(last.epoch), "optimizer_state_sha": sha})
        if last is not None:
            self._saver.checkpoints = prune(
                self._saver.checkpoints, self._config, self.state.val_loss_history
            )
        name = self.resumed_from.name if self.resumed_from else "the start: no checkpoint was written"
        self._report.line(f"resumed at step {step} from {name}")

    def _evaluation_is_due(self) -> bool:
        step = self.state.step
        ended = step % self._config.steps_per_epoch == 0 or step == self._config.num_steps
        return ended and step != self.state.evaluated_step

    # a step

    def _step(self) -> Ended | None:
        config, state = self._config, self.state
        assert config.lr is not None
        assert config.warmup_steps is not None
        ended = self._next_windows_are_there()
        if ended is not None:
            return ended
        started = time.perf_counter()
        lr = learning_rate(
            state.step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            num_steps=config.num_steps,
            min_ratio=config.min_lr_ratio,
        )
        self._accumulate()
        limit = state.loss_limit if config.skip_spikes else None
        made = self._training_step.update(lr, math.inf if limit is None else limit)
        if not made.finite:
            self.finite = False
            order = TrainingOrder(len(self._train), config.seed, config.shuffle)
            windows = order.windows(self.windows_seen, config.windows_per_step).tolist()
            self._record_step(made, lr, time.perf_counter() - started, windows=windows)
            named = ", ".join(map(str, windows[:_NAMED_WINDOWS])) + " …" * (len(windows) > _NAMED_WINDOWS)
            saved = self.save_on_the_way()
            return Ended(
                "NUMERICAL_INSTABILITY",
                f"train_loss {made.train_loss}, grad_norm {made.grad_norm} at step {state.step}, from the "
                f"training windows {named}: no update was made from it; "
                + (f"the state before it is {saved.name}" if saved else "nothing was trained yet"),
            )
        seconds = time.perf_counter() - started
        self._seconds.append(seconds)
        self._record_step(made, lr, seconds)
        state.add_step(made.train_loss, made.grad_norm, config.tokens_per_step, updated=made.updated)
        return None

    def _next_windows_are_there(self) -> Ended | None:
        """Whether the stream has the next step's windows, or may be cycled for them."""
        first, count = self.windows_seen, len(self._train)
        last = first + self._config.windows_per_step - 1
        if last < count:
            return None
        if not self._config.allow_shard_cycle:
            self.exhausted = True
            self.save_on_the_way()
            return Ended(
                "STREAM_EXHAUSTED", f"all {count:,} training windows were visited at step {self.state.step}"
            )
        if first == 0 or last // count > (first - 1) // count:
            self._report.line(f"the stream starts again: epoch {last // count} of its {count:,} windows")
        return None

    def _accumulate(self) -> None:
        """Gradients of one step; the first time, also whether the evaluation's way gives the same loss."""
        batches = [next(self._loader) for _ in range(self._config.grad_accum)]
        loss = self._training_step.accumulate(batches, self._config.tokens_per_step)
        if self._disagreement is None:
            self._check_agreement(batches, loss)

    def _check_agreement(self, batches: list[Tensor], train: float) -> None:
        """The loss of this process's first step must not depend on which path computes it."""
        held_out = 0.0
        with torch.no_grad(), computing(self._prepared.device, self._prepared.precision):
            for ids in batches:
                held_out += token_losses(self._model, ids).sum(dtype=torch.float64).item()
        held_out /= self._config.tokens_per_step
        self._disagreement = abs(train - held_out) / max(abs(train), 1e-9)
        if self.state.step == 0:
            self.state.agreement = self._disagreement
        if self.agreement.passed is False:
            raise DisagreementError(
                f"the first step's loss is {train:.4f} in training and {held_out:.4f} in evaluation"
            )

    def _record_step(self, made: StepOutcome, lr: float, seconds: float, **more: object) -> None:
        state, speed = self.state, self._config.tokens_per_step / seconds
        flops = self._prepared.needs.flops_a_token * speed
        limit = state.loss_limit
        record = StepRecord(
            step=state.step,
            train_loss=made.train_loss,
            grad_norm=made.grad_norm,
            lr=lr,
            device=str(self._prepared.device),
            tokens_per_sec=round(speed, 3),
            gpu_util_pct=self._utilisation.percent(),
            mfu=None if self._peak_flops is None else round(flops / self._peak_flops, 4),
            tokens_seen=state.tokens_seen + self._config.tokens_per_step,
            wall_seconds=self._wall(),
            loss_limit=limit,
            spike=limit is not None and made.train_loss > limit,
            updated=made.updated,
        )
        self._metrics.write({**asdict(record), **more})
        self._show_step(record)
        self._send(record)

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

    def _send(self, record: StepRecord | EvaluationRecord | CheckpointRecord) -> None:
        for callbacks in self._callbacks:
            callbacks.send(record)

    # an epoch

    def _end_of_epoch(self) -> Ended | None:
        evaluation = self._evaluate(f"epoch {self.state.epochs}")
        if not math.isfinite(evaluation.val_loss):
            self.finite = False
            return Ended(
                "NUMERICAL_INSTABILITY", f"held-out loss {evaluation.val_loss} at step {self.state.step}"
            )
        self.state.end_epoch(evaluation.val_loss)
        epoch = self.state.epochs - 1
        self._save(epoch_path(self._dir, epoch), epoch)
        return self._epoch_gates()

    def _epoch_gates(self) -> Ended | None:
        config, history = self._config, self.state.val_loss_history
        divergence = gates.divergence(history, self._cap)
        if not divergence.passed:
            return Ended(
                "DIVERGENCE", f"held-out loss {divergence.value:.4f} is above {divergence.threshold:.4f}"
            )
        assert config.target_val_loss is not None
        met = history[-1] <= config.target_val_loss
        if met and config.stop_at_target and config.contract is None:
            return self._budget_spent()
        patience = gates.patience(
            history, self.state.best_epoch, epochs=config.patience, min_epochs=config.min_epochs
        )
        if not patience.passed and not met:
            return Ended(
                "EARLY_STOP", f"no new best held-out loss in {patience.value} epochs; {self._change()}"
            )
        return None

    def _budget_spent(self) -> Ended:
        target, final = self._config.target_val_loss, self.final_val_loss
        assert target is not None
        met = final is not None and final <= target
        words = f"target {target:g} {'met' if met else 'not met'}"
        return Ended("TARGET_MET" if met else "BUDGET_SPENT", f"{self._change()}; {words}")

    def _change(self) -> str:
        initial, final = self.state.initial_val_loss, self.final_val_loss
        after = "not measured" if final is None else f"{final:.4f}"
        return f"held-out loss {initial:.4f} before, {after} after {self.state.step} steps"

    def _evaluate(self, when: str) -> Evaluation:
        started = time.perf_counter()

        def on_progress(done: int, total: int) -> None:
            self._stop.check()
            self._report.progress(f"evaluation {when}: {done}/{total} windows", done, total)

        made = evaluate(
            self._model,
            self._prepared.split.held_out,
            val_tokens=self._config.val_tokens,
            batch_size=self._config.batch_size,
            precision=self._prepared.precision,
            on_progress=on_progress,
        )
        record = EvaluationRecord(
            step=self.state.step,
            val_loss=made.val_loss,
            val_ppl=made.val_ppl,
            val_tokens=made.val_tokens,
            tokens_seen=self.state.tokens_seen,
            wall_seconds=self._wall(),
        )
        self._evaluation_seconds = time.perf_counter() - started
        self._metrics.write(asdict(record))
        self._report.line(
            f"{when}: held-out loss {made.val_loss:.4f} (perplexity {made.val_ppl:.2f}) "
            f"over {made.val_tokens:,} tokens in {self._evaluation_seconds:.1f} s"
        )
        self._send(record)
        return made

    def _save(self, path: Path, epoch: int | None) -> None:
        """Have a checkpoint written; the one before is waited for."""
        self._report.progress(f"writing {path.name}", 0, 1)
        self._collect(self._saver.wait())
        facts = None if epoch is None else self._epoch_facts(epoch)
        self._saver.save(
            Checkpoint(path, self.state.step, epoch), self._model, self._optimizer, self.state, facts
        )

    def _collect(self, written: Checkpoint | None) -> None:
        if written is not None:
            name = written.path.relative_to(self._dir)
            self._report.line(f"wrote {name}: step {written.step}, read back and verified")
            self._send(CheckpointRecord(step=written.step, epoch=written.epoch, path=written.path))

    def _epoch_facts(self, epoch: int) -> dict[str, Any]:
        state = self.state
        val_loss = state.val_loss_history[-1]
        return {
            "epoch": epoch,
            "train_loss": state.train_loss,
            "val_loss": val_loss,
            "train_ppl": None if state.train_loss is None else perplexity(state.train_loss),
            "val_ppl": perplexity(val_loss),
            "wall_seconds": self._wall(),
            "tokens_seen": state.tokens_seen,
            "grad_norm_max": state.grad_norm_max,
        }

    def _wall(self) -> float:
        return round(self.wall_before + time.monotonic() - self._started, 3)

    def _time_left(self, done: int) -> str:
        recent = self._seconds[-20:]
        steps = sum(recent) / max(1, len(recent)) * (self._config.num_steps - done)
        evaluations = self._config.epochs - (done - 1) // self._config.steps_per_epoch
        return clock(steps + self._evaluation_seconds * evaluations)

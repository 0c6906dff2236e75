"""Steps, evaluations and checkpoints, from a prepared run to its end."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from apr.data.loader import Loader, LoaderState, fingerprint
from apr.data.windows import TrainingOrder
from apr.errors import RefusedError
from apr.model.fill import spoiled
from apr.train import gates, rundir
from apr.train.checkpoint import resume
from apr.train.checkpoint.export import export_weights
from apr.train.checkpoint.restore import restore
from apr.train.checkpoint.saver import Saver
from apr.train.checkpoint.state import RunState
from apr.train.ends import Ended, after_epoch, budget_spent
from apr.train.evaluation import Evaluation, evaluate
from apr.train.loss import token_losses
from apr.train.machine.device import computing
from apr.train.optimizer import make_optimizer, set_learning_rate
from apr.train.record.recording import Recorder
from apr.train.record.result import Gate
from apr.train.schedule import learning_rate
from apr.train.step import Step, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from apr.model.decoder import Decoder
    from apr.train.machine.signals import StopRequest
    from apr.train.prepared import Prepared
    from apr.train.record.callbacks import Callbacks
    from apr.train.record.report import Report

# Relative difference of a batch's loss between the train and the eval path: same weights, same windows; only
# the order of rounding may differ.
_AGREEMENT = {"fp32": 1e-4, "bf16": 2e-2}
# Windows that a sentence names; the record has them all.
_NAMED_WINDOWS = 8


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
        *,
        started: float,
    ) -> None:
        self._prepared, self._config, self._model = prepared, prepared.config, model
        self._report, self._stop = report, stop
        self._dir = prepared.config.run_dir
        self._train = prepared.split.train
        self._cap = gates.first_cap(
            self._config.mode_defaults.first_val_loss_cap, prepared.model_config.vocab_size
        )
        self.state = RunState()
        self._disagreement: float | None = None
        self.finite = True
        self.exhausted = False
        self.exported: Path | None = None
        torch.manual_seed(self._config.seed)
        self._optimizer = make_optimizer(model, self._config)
        self._training_step = Step(
            model,
            self._optimizer,
            precision=prepared.precision,
            grad_clip=self._config.grad_clip,
            compiled=self._config.compile,
        )
        self._recorder = Recorder(
            self._config,
            prepared.device,
            prepared.precision,
            prepared.needs.flops_a_token,
            report,
            callbacks,
            started=started,
        )
        self._saver = Saver(self._config, prepared.facts, model, self._optimizer, report, self._recorder)

    # what the result asks for

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
        return None if self._saver.last is None else self._saver.last.path

    @property
    def best_checkpoint(self) -> Path | None:
        """Of the epoch with the lowest held-out loss, among those that are there."""
        best = self._saver.best(self.state)
        return None if best is None else best.path

    @property
    def best_checkpoint_loss(self) -> float | None:
        """Its held-out loss."""
        best = self._saver.best(self.state)
        return None if best is None or best.epoch is None else self.state.val_loss_history[best.epoch]

    @property
    def resumed_from(self) -> Path | None:
        """The checkpoint that was gone on from."""
        last = None if self._prepared.found is None else self._prepared.found.last
        return None if last is None else last.path

    @property
    def wall(self) -> float:
        """Seconds since `pretrain` was called, and those of the run's earlier parts."""
        return self._recorder.wall

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
        self._settle()
        with self._recorder, self._batches() as loader:
            self._loader = loader
            try:
                ended = self._to_the_end()
            except Exception:  # a second signal alone does not wait
                self._saver.join()
                raise
        self._saver.wait()
        return ended

    def _to_the_end(self) -> Ended:
        if self.state.initial_val_loss is None:
            before = self._evaluate("before the first step").val_loss
            if not math.isfinite(before):
                return self._bad_evaluation(before)
            self.state.initial_val_loss = before
        ended = None
        if self._evaluation_is_due():
            ended = self._end_of_epoch()
        elif self.state.final_val_loss is not None:  # at the end of an epoch: what ended it ends it again
            ended = after_epoch(self._config, self.state, self._cap)
        while ended is None and self.state.step < self._config.num_steps:
            self._stop.check()
            self._saver.look()
            ended = self._step()
            if ended is None and self._evaluation_is_due():
                ended = self._end_of_epoch()
            elif ended is None and self._config.saves_on_the_way(self.state.step):
                self._saver.save_step(self.state)
        return ended or budget_spent(self._config, self.state)

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

    def save_the_rest(self) -> Path | None:
        """Save what was trained since the last checkpoint; where the latest state lies, None before any.

        Raises:
            AprError, OSError: it cannot be saved.
        """
        saved = self._saver.save_the_rest(self.state)
        return None if saved is None else saved.path

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
            self.exported = path
            self._report.line(f"wrote {path.name}: the weights in bfloat16, read back and verified")

    def take_up(self) -> None:
        """Restore what the run has beyond the weights; nothing is written.

        Raises:
            RefusedError: it is of another run or of other shards.
        """
        self._recorder.wall_before = resume.seconds_before(self._dir)
        if self.resumed_from is not None:
            self.state = restore(self.resumed_from, self._model, self._optimizer, self._prepared.facts)

    def _settle(self) -> None:
        """Bring the files of a run that is taken up to where its state is."""
        found = self._prepared.found
        if found is None:
            return
        resume.settle(self._dir, found, self.state, self._report)
        if found.checkpoints:
            self._saver.take_over(found.checkpoints, self.state)

    def _evaluation_is_due(self) -> bool:
        step = self.state.step
        ended = step % self._config.steps_per_epoch == 0 or step == self._config.num_steps
        return ended and step != self.state.evaluated_step

    # a step

    def _step(self) -> Ended | None:
        config, state = self._config, self.state
        ended = self._next_windows_are_there()
        if ended is not None:
            return ended
        started = time.perf_counter()
        lr = self._rate(state.step)
        self._accumulate()
        limit = state.loss_limit if config.skip_spikes else None
        made = self._training_step.update(lr, math.inf if limit is None else limit)
        seconds = time.perf_counter() - started
        if not made.finite:
            return self._bad_numbers(made, lr, seconds)
        self._recorder.step(state, made, lr, seconds)
        state.add_step(made.train_loss, made.grad_norm, config.tokens_per_step, updated=made.updated)
        return None

    def _rate(self, step: int) -> float:
        config = self._config
        return learning_rate(
            step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            num_steps=config.num_steps,
            min_ratio=config.min_lr_ratio,
        )

    def _bad_numbers(self, made: StepOutcome, lr: float, seconds: float) -> Ended:
        """Save the state before the step if it is good, and say which windows it came from."""
        self.finite = False
        step = self.state.step
        order = TrainingOrder(len(self._train), self._config.seed, self._config.shuffle)
        windows = order.windows(self.windows_seen, self._config.windows_per_step).tolist()
        self._recorder.step(self.state, made, lr, seconds, windows=windows)
        named = ", ".join(map(str, windows[:_NAMED_WINDOWS])) + " …" * (len(windows) > _NAMED_WINDOWS)
        if step:
            set_learning_rate(self._optimizer, self._rate(step - 1))  # a part of that state too
        return Ended(
            "NUMERICAL_INSTABILITY",
            f"train_loss {made.train_loss}, grad_norm {made.grad_norm} at step {step}, from the "
            f"training windows {named}: no update was made from it; {self._save_if_good()}",
        )

    def _bad_evaluation(self, val_loss: float) -> Ended:
        self.finite = False
        when = f"at step {self.state.step}" if self.state.step else "before the first step"
        return Ended("NUMERICAL_INSTABILITY", f"held-out loss {val_loss} {when}; {self._save_if_good()}")

    def _save_if_good(self) -> str:
        """Save what was trained since the last checkpoint, unless its weights are none; what is there."""
        problem = spoiled(self._model.named_parameters())
        if problem is None:
            saved = self.save_the_rest()
            return f"the state before it is {saved.name}" if saved else "nothing was trained yet"
        self._saver.wait()
        last = self._saver.last
        kept = f"the last checkpoint is {last.path.name}" if last else "there is no checkpoint"
        return f"the weights are spoiled too and are not saved ({problem}): {kept}"

    def _next_windows_are_there(self) -> Ended | None:
        """Whether the stream has the next step's windows, or may be cycled for them."""
        first, count = self.windows_seen, len(self._train)
        last = first + self._config.windows_per_step - 1
        if last < count:
            return None
        if not self._config.allow_shard_cycle:
            self.exhausted = True
            self.save_the_rest()
            return Ended(
                "STREAM_EXHAUSTED", f"all {count:,} training windows were visited at step {self.state.step}"
            )
        if first == 0 or last // count > (first - 1) // count:
            self._report.line(f"the stream starts again: epoch {last // count} of its {count:,} windows")
        return None

    def _accumulate(self) -> None:
        """Gradients of one step; the first time, also whether the evaluation's way gives the same loss."""
        batches = [next(self._loader) for _ in range(self._config.grad_accum)]
        self._training_step.accumulate(batches, self._config.tokens_per_step)
        if self._disagreement is None:
            self._check_agreement(batches)

    def _check_agreement(self, batches: list[Tensor]) -> None:
        """The loss of this process's first step must not depend on which path computes it."""
        train, held_out = self._training_step.loss(), 0.0
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

    # an epoch

    def _end_of_epoch(self) -> Ended | None:
        evaluation = self._evaluate(f"epoch {self.state.epochs}")
        if not math.isfinite(evaluation.val_loss):
            return self._bad_evaluation(evaluation.val_loss)
        self.state.end_epoch(evaluation.val_loss)
        self._saver.save_epoch(self.state)
        return after_epoch(self._config, self.state, self._cap)

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
        self._recorder.evaluation(self.state, made, when, time.perf_counter() - started)
        return made

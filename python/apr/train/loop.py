"""Steps, evaluations and checkpoints, from a prepared run to its end."""

from __future__ import annotations

import math
import time
from itertools import chain
from typing import TYPE_CHECKING

import torch

from apr.data.loader import Loader, LoaderState, fingerprint
from apr.data.windows import TrainingOrder
from apr.model.fill import first_implausible
from apr.plurals import counted
from apr.train import gates, rundir
from apr.train.checkpoint.export import export_weights, take_part_in_export
from apr.train.checkpoint.probe import checkpoint_seconds
from apr.train.checkpoint.restore import restore
from apr.train.checkpoint.resume import cut_back_to, seconds_before
from apr.train.checkpoint.saver import Saver
from apr.train.checkpoint.state import RunState
from apr.train.ends import Ending, after_evaluation, budget_spent, ending
from apr.train.evaluation import evaluate, group_size
from apr.train.loss import token_losses
from apr.train.machine.deadline import Deadline, OutOfTime
from apr.train.machine.device import computing
from apr.train.optimizer import make_optimizer, set_learning_rate
from apr.train.parallel.shard import own, reshard
from apr.train.record.recorder import Recorder
from apr.train.record.result import Gate
from apr.train.schedule import learning_rate
from apr.train.step import Step, StepOutcome

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from apr.model.decoder import Decoder
    from apr.train.machine.signals import StopRequest
    from apr.train.prepared import Prepared
    from apr.train.record.report import Report

# Largest relative difference of a batch's loss between the training and the evaluation path. Weights and
# windows are the same, so that only the order of rounding may differ.
_AGREEMENT = {"fp32": 1e-4, "bf16": 2e-2}
# Windows named in a sentence; the record in `train.jsonl` has all of them.
_NAMED_WINDOWS = 8


class Loop:
    """A model in training. `run` trains to the end; the attributes have what is known by then.

    Args:
        prepared: the run.
        model: its model, on its device.
        report: prints lines for people.
        stop: asked before each step and each group of an evaluation.
        started: `time.monotonic()` of when the run began, and with it the time of --max-minutes.
    """

    def __init__(
        self, prepared: Prepared, model: Decoder, report: Report, stop: StopRequest, *, started: float
    ) -> None:
        self.prepared = prepared
        self._config, self._model = prepared.config, model
        self._report, self._stop = report, stop
        self._dir, self._world = prepared.config.run_dir, prepared.world
        self._train = prepared.split.train
        # Random weights in --init start near ln V, which may be above the cap of a trained model.
        cap = None if prepared.starts_untrained else prepared.config.mode_defaults.first_val_loss_cap
        self.first_cap = gates.first_cap(cap, prepared.model_config.vocab_size)
        """The largest held-out loss that the first evaluation after training began may have, in nats."""
        self.state = RunState()
        self.first_step = 0
        """The step that this process starts at."""
        self.finite = True
        """False once a loss or a gradient norm was NaN or infinite."""
        self.exhausted = False
        """Whether the run ended because all training windows were visited."""
        self.exported: Path | None = None
        """The file with the weights alone, once it is written."""
        self._disagreement: float | None = None
        self._deadline = Deadline(started, prepared.config.max_minutes)
        self.step_seconds = 0.0
        """How long the last step took, on the slowest rank."""
        self._evaluation_seconds = self._save_seconds = 0.0
        # The generator's state is in every checkpoint, so it must not depend on the caller.
        torch.manual_seed(self._config.seed)
        self._optimizer = make_optimizer(model, self._config)
        self._step = Step(
            model,
            self._optimizer,
            precision=self._config.precision,
            grad_clip=self._config.grad_clip,
            compiled=self._config.compile,
            recomputes=self._config.activation_checkpointing,
            world=self._world,
            fixed_order=self._config.deterministic,
        )
        self.recorder = Recorder(
            self._config,
            prepared.device,
            prepared.needs.flops_per_token,
            report,
            started=started,
            world=self._world,
        )
        self.saver = Saver(
            self._config,
            prepared.metadata,
            model,
            self._optimizer,
            report,
            self.recorder.checkpoint,
            writes=self._world.leads,
        )

    @property
    def agreement(self) -> Gate:
        """Whether training and evaluation computed the same loss for the first batch.

        It is measured in the first step of the run, and again in the first step of a process that resumes it.
        """
        measured = [d for d in (self.state.agreement, self._disagreement) if d is not None]
        worst, allowed = max(measured, default=None), _AGREEMENT[self._config.precision]
        # `not >` instead of `<=`: NaN passes here, because the numerics gate names it.
        return Gate("train_eval_agree", None if worst is None else not worst > allowed, worst, allowed)

    @property
    def resumed_from(self) -> Path | None:
        """The checkpoint that the run was resumed from."""
        point = self.prepared.resume_point
        return None if point is None or point.last is None else point.last.path

    @property
    def windows_seen(self) -> int:
        """Number of training windows visited; a window counts each time."""
        return self.state.step * self._config.windows_per_step

    @property
    def windows_allowed(self) -> int | None:
        """Number of training windows that may be visited; None with --allow-shard-cycle."""
        return None if self._config.allow_shard_cycle else len(self._train)

    # The run.

    def restore(self) -> None:
        """Restore what a resumed run has beyond the weights. Nothing is written.

        Raises:
            RefusedError: the checkpoint is of other shards, or lacks state.
        """
        if self.prepared.resume_point is None:
            return
        self.recorder.seconds_before = seconds_before(self._dir)
        if self.resumed_from is not None:
            training = self.prepared.metadata.training
            self.state = restore(self.resumed_from, self._model, self._optimizer, training)
            self.first_step = self.state.step

    def run(self) -> Ending:
        """Train to the end.

        Raises:
            Interrupted: a signal asked for it; what was trained is not saved yet.
            OutOfTime: the time of --max-minutes is over; what was trained is not saved yet.
        """
        if self._config.max_minutes is not None and self._world.leads:
            # A guess until there is a checkpoint; twice, because training goes on while the first one is
            # written.
            self._save_seconds = 2 * checkpoint_seconds(self._dir, self.prepared.needs.checkpoint_bytes)
        point = self.prepared.resume_point
        if point is not None:
            if self._world.leads:
                cut_back_to(self._dir, point, self.state, self._report)
            if point.checkpoints:
                self.saver.adopt(point.checkpoints, self.state, self.recorder.wall_seconds)
        # Done by the end of the first evaluation, or of compiling.
        self.saver.prepare()
        with self.recorder, self._open_loader() as self._loader:
            ended = self._train_to_the_end()
        # The last checkpoint counts only once it is verified, and its error is the run's.
        self.saver.wait()
        return ended

    def release(self) -> None:
        """Free what must be gone before this process leaves the others. Nothing is computed any more."""
        self._step.release()

    def export(self) -> None:
        """Write the weights alone, if --save-dtype asks for them.

        Raises:
            AprError, OSError: they cannot be written.
        """
        if self._config.save_dtype == "bf16" and not self._world.leads:
            take_part_in_export(self._model)
        elif self._config.save_dtype == "bf16":
            path = self._dir / rundir.EXPORT
            export_weights(path, self._model, self.prepared.metadata, torch.bfloat16)
            self.exported = path
            self._report.line(f"wrote {path.name}: the weights in bfloat16, read back and verified")

    def _open_loader(self) -> Loader:
        """Return a loader of the training windows that were not visited yet."""
        config = self._config
        # From the counter of the run, not from a saved position: the order is a bijection that reaches any
        # window directly, and a run may resume with another split into micro-batches.
        epoch, position = divmod(self.windows_seen, len(self._train))
        state = LoaderState(fingerprint(self._train, shuffle=config.shuffle), epoch, position, config.seed)
        return Loader(
            self._train,
            config.batch_size,
            shuffle=config.shuffle,
            rank=self._world.rank,
            world_size=self._world.size,
            turn=config.grad_accum,
            device=self.prepared.device,
            state=state,
        )

    def _train_to_the_end(self) -> Ending:
        config, state = self._config, self.state
        # Once in a run, not once in a process: without it no figure says what training changed.
        if state.initial_val_loss is None:
            val_loss = self._evaluate("before the first step")
            if not math.isfinite(val_loss):
                return self._bad_evaluation(val_loss)
            state.initial_val_loss = val_loss
        ended = None
        if self._evaluation_is_due():
            # A signal interrupted it.
            ended = self._evaluate_and_save()
        elif state.final_val_loss is not None:
            # Resumed right after an evaluation: what ended the run then ends it again. Training on would turn
            # a DIVERGENCE into a BUDGET_SPENT with exit code 0.
            ended = after_evaluation(config, state, self.first_cap)
        while ended is None and state.step < config.num_steps:
            self._check_stop(self.step_seconds)
            # Here, not on the saver's thread: callbacks are called in this one.
            self.saver.poll()
            ended = self._take_step()
            if ended is not None:
                break
            if self._evaluation_is_due():
                ended = self._evaluate_and_save()
            elif config.saves_on_the_way(state.step):
                self.saver.save_step(state)
        return ended or budget_spent(config, state)

    def _check_stop(self, seconds: float) -> None:
        """Stop here if a signal arrived, or if what takes so many seconds could not be saved in time.

        All ranks call it, and stop together.
        """
        save = max(self._save_seconds, self.saver.seconds)
        # One that is being written comes before that of the stop. A contract reads the last one again.
        saves = 1 + (not self.saver.idle) + (self._config.contract is not None)
        late = self._deadline.is_before_end_of(seconds + saves * save)
        # A signal may reach one rank only, or each of them in another step.
        arrived, of_ranks_late = zip(*self._world.gather([self._stop.signal or 0, late]), strict=True)
        self._stop.check(arrived)
        if any(of_ranks_late):
            raise OutOfTime

    # A step.

    def _take_step(self) -> Ending | None:
        config, state = self._config, self.state
        ended = self._check_windows_left()
        if ended is not None:
            return ended
        started = time.perf_counter()
        lr = self._learning_rate(state.step)
        # Kept in a list: in its first step, a process computes their loss a second time in the way of the
        # evaluation.
        batches = [next(self._loader) for _ in range(config.grad_accum)]
        self._step.accumulate(batches, config.tokens_per_step)
        if self._disagreement is None:
            ended = self._check_agreement(batches)
            if ended is not None:
                return ended
        limit = state.loss_limit
        skip_above = limit if config.skip_spikes and limit is not None else math.inf
        outcome = self._step.update(lr, skip_above)
        own_seconds = time.perf_counter() - started
        seconds = self.step_seconds = max(of_rank for (of_rank,) in self._world.gather([own_seconds]))
        if state.step == self.first_step:
            self._world.be_patient(False)
        if not outcome.finite:
            return self._bad_step(outcome, lr, seconds, batches)
        self._record_step(outcome, lr, seconds)
        state.add_step(outcome.train_loss, outcome.grad_norm, config.tokens_per_step, updated=outcome.updated)
        return None

    def _check_windows_left(self) -> Ending | None:
        """End the run if the training windows are used up, unless they may be visited again."""
        first, count = self.windows_seen, len(self._train)
        # Counted before the step. A trainer whose stream ran out once returned a loss of 1.0 and reported
        # hours of progress in under a second.
        last = first + self._config.windows_per_step - 1
        if last < count:
            return None
        if not self._config.allow_shard_cycle:
            self.exhausted = True
            self.saver.save_unsaved_steps(self.state)
            return ending(
                "STREAM_EXHAUSTED", f"all {count:,} training windows were used by step {self.state.step}"
            )
        # One line for each pass over the data. The first step has no step before it to compare with.
        if first == 0 or last // count > (first - 1) // count:
            self._report.line(
                f"starting epoch {last // count + 1}: another pass over the {count:,} training windows"
            )
        return None

    def _learning_rate(self, step: int) -> float:
        config = self._config
        return learning_rate(
            step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            num_steps=config.num_steps,
            min_ratio=config.min_lr_ratio,
        )

    def _check_agreement(self, batches: list[Tensor]) -> Ending | None:
        """End the run if evaluation computes another loss for this process's first step than training.

        Others have trained for hours with an evaluation that was wrong by three orders of magnitude.
        """
        # Reading the loss makes the host wait for the device, so this is done in one step only.
        training = self._step.loss()
        group = group_size(self._config.seq_length, self.prepared.device)
        with torch.no_grad(), computing(self.prepared.device, self._config.precision):
            losses = [
                token_losses(self._model, ids).sum(dtype=torch.float64).item()
                for batch in batches
                # In the groups of an evaluation: a large micro-batch may need more memory than any of those.
                for ids in torch.split(batch, group)
            ]
        reshard(self._model)
        of_all = chain.from_iterable(self._world.gather(losses))
        evaluation = math.fsum(of_all) / self._config.tokens_per_step
        # Relative, with a floor: the loss of a memorized batch may be 0.
        self._disagreement = abs(training - evaluation) / max(abs(training), 1e-9)
        if self.state.step == 0:
            self.state.agreement = self._disagreement
        if self.agreement.passed is not False:
            return None
        return ending(
            "REFUSED",
            f"the loss of the first step is {training:.4f} in training, but {evaluation:.4f} in evaluation",
        )

    def _record_step(
        self, outcome: StepOutcome, lr: float, seconds: float, windows: list[int] | None = None
    ) -> None:
        self.recorder.step(
            self.state.step,
            outcome,
            lr=lr,
            loss_limit=self.state.loss_limit,
            tokens_seen=self.state.tokens_seen + self._config.tokens_per_step,
            seconds=seconds,
            windows=windows,
        )

    def _bad_step(self, outcome: StepOutcome, lr: float, seconds: float, batches: list[Tensor]) -> Ending:
        """End the run at a loss or norm that is not finite, and name the windows that it came from."""
        self.finite = False
        step = self.state.step
        # Computed again from the seed: batches do not carry the numbers of their windows.
        order = TrainingOrder(len(self._train), self._config.seed, self._config.shuffle)
        windows = order.windows(self.windows_seen, self._config.windows_per_step).tolist()
        self._record_step(outcome, lr, seconds, windows)
        names = ", ".join(map(str, windows[:_NAMED_WINDOWS]))
        if len(windows) > _NAMED_WINDOWS:
            names += " …"
        if step:
            # The state before this step, which may be saved now, has the rate of the step before.
            set_learning_rate(self._optimizer, self._learning_rate(step - 1))
        return ending(
            "NUMERICAL_INSTABILITY",
            f"train_loss is {outcome.train_loss} and grad_norm {outcome.grad_norm} at step {step} "
            f"(training windows {names}){self._where_bad(batches)}; the weights were not updated; "
            f"{self._save_unless_spoiled()}",
        )

    def _where_bad(self, batches: list[Tensor]) -> str:
        """Return which ranks computed numbers that are not finite, if there are several ranks."""
        if self._world.size == 1:
            return ""
        numbers = self._world.gather(self._step.own_numbers(batches, self._config.tokens_per_step))
        bad = [self._world.name(rank) for rank, own in enumerate(numbers) if not all(map(math.isfinite, own))]
        # Each may be finite, and their sum be too large for float32.
        return f", on {' and '.join(bad or ['all ranks together'])}"

    def _save_unless_spoiled(self) -> str:
        """Save the steps since the last checkpoint unless the weights are bad, and return what there is."""
        # Infinite weights saved as the last good state would be what --resume starts from.
        rows = ((name, own(parameter)) for name, parameter in self._model.named_parameters())
        problems = self._world.gather_objects(first_implausible(rows))
        problem = next((problem for problem in problems if problem is not None), None)
        if problem is None:
            saved = self.saver.save_unsaved_steps(self.state)
            if saved is None:
                return "no step was trained yet"
            return f"the state before this step is in {saved.path.name}"
        self.saver.wait()
        last = self.saver.last
        kept = "there is no checkpoint" if last is None else f"the last checkpoint is {last.path.name}"
        return f"the weights are unusable too and were not saved ({problem}); {kept}"

    # An evaluation.

    def _evaluation_is_due(self) -> bool:
        # Not by the number of evaluations: --extend after a shorter last interval would shift all later ones.
        step = self.state.step
        return self._config.evaluates_after(step) and step != self.state.evaluated_step

    def _evaluate_and_save(self) -> Ending | None:
        val_loss = self._evaluate(f"after {counted(self.state.step, 'step')}")
        if not math.isfinite(val_loss):
            return self._bad_evaluation(val_loss)
        # The state before the checkpoint, which contains it: a resumed run must know this evaluation.
        self.state.add_evaluation(val_loss)
        self.saver.save_evaluated(self.state, self.recorder.wall_seconds)
        return after_evaluation(self._config, self.state, self.first_cap)

    def _evaluate(self, name: str) -> float:
        """Measure and record the held-out loss."""
        # Not begun if it would be dropped at the end of the time. How long it takes is known after the first.
        self._check_stop(self._evaluation_seconds)
        started = time.perf_counter()

        def on_progress(done: int, total: int) -> None:
            self._check_stop(0.0)
            self._report.progress(f"evaluation {name}: {done}/{total} windows", done, total)

        evaluation = evaluate(
            self._model,
            self.prepared.split.held_out,
            val_tokens=self._config.val_tokens,
            precision=self._config.precision,
            world=self._world,
            on_progress=on_progress,
        )
        reshard(self._model)
        self._evaluation_seconds = time.perf_counter() - started
        self.recorder.evaluation(
            name,
            val_loss=evaluation.val_loss,
            val_tokens=evaluation.val_tokens,
            step=self.state.step,
            tokens_seen=self.state.tokens_seen,
            seconds=self._evaluation_seconds,
        )
        # Weights that are not finite have nothing to say.
        if self.prepared.sampler is not None and math.isfinite(evaluation.val_loss):
            with computing(self.prepared.device, self._config.precision):
                sample = self.prepared.sampler.sample(self._model, self.state.step)
            self.recorder.sample(sample)
        return evaluation.val_loss

    def _bad_evaluation(self, val_loss: float) -> Ending:
        self.finite = False
        when = f"at step {self.state.step}" if self.state.step else "before the first step"
        return ending(
            "NUMERICAL_INSTABILITY", f"held-out loss is {val_loss} {when}; {self._save_unless_spoiled()}"
        )

"""A run from its options to its verdict."""

from __future__ import annotations

import platform
import signal
import statistics
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from apr.duration import format_duration
from apr.errors import EXIT_REFUSED, EXIT_UNFORESEEN, AprError, RefusedError, exit_code, message, messages
from apr.files import write_json
from apr.train import gates, rundir
from apr.train.loop import DisagreementError, Loop
from apr.train.machine.determinism import determinism, own_settings
from apr.train.machine.device import forget_peak_memory, peak_memory_bytes
from apr.train.machine.out_of_memory import building, is_out_of_memory, out_of_memory
from apr.train.machine.signals import Interrupted, StoppedAtOnce, StopRequest
from apr.train.record.metrics import read_metrics
from apr.train.record.plot import plot_losses
from apr.train.record.report import Report
from apr.train.record.result import Gate, Result, Status
from apr.train.record.tensorboard import EventFiles
from apr.train.start.planning import summary
from apr.train.start.preflight import prepare

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from apr.train.config import PretrainConfig
    from apr.train.prepared import Prepared
    from apr.train.record.callbacks import Callbacks

_EXIT_CODES: dict[Status, int] = {
    "TARGET_MET": 0,
    "BUDGET_SPENT": 0,
    "EARLY_STOP": 0,
    "DIVERGENCE": EXIT_REFUSED,
    "NUMERICAL_INSTABILITY": EXIT_REFUSED,
    "STREAM_EXHAUSTED": EXIT_REFUSED,
    "REFUSED": EXIT_REFUSED,
    "FAILED": EXIT_UNFORESEEN,
}
# Steps that a median of the speed leaves out: kernels are chosen and memory is first touched in them.
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class _End:
    """How the loop ended."""

    status: Status
    exit_code: int
    detail: str


def pretrain(
    config: PretrainConfig, *, callbacks: Callbacks | None = None, out: TextIO | None = None
) -> Result:
    """Train, and write all that the run directory promises whatever the end.

    Runs in any thread, in a notebook, and again in the same process: what a caller set of torch's random
    numbers, default dtype and gradient mode, and of handlers of signals, is afterwards as it was and changes
    nothing of the run. In the main thread, SIGINT and SIGTERM save and end the run (status INTERRUPTED); in
    another one no signal reaches it.

    Args:
        config: the options.
        callbacks: functions for the records of steps, evaluations and checkpoints.
        out: where lines for people go; standard output by default.

    Raises:
        AprError, OSError, RefusedError: it was refused before the first step; `result.json` says so too where
            the run directory exists and holds no run, and no other run is writing there.
    """
    started = time.monotonic()
    with Report(sys.stdout if out is None else out) as report, StopRequest() as stop, ExitStack() as context:
        run_dir_was_there = config.run_dir.is_dir()
        holds = context.enter_context(ExitStack())
        holds.enter_context(rundir.claimed(config.run_dir))
        try:
            context.enter_context(own_settings())
            if config.resume:
                rundir.check_run_dir(config)
                config = rundir.resumed_config(config)
            prepared = prepare(config)
            context.enter_context(_own_random_numbers(prepared.device))
            context.enter_context(determinism(asked=config.deterministic))
            forget_peak_memory(prepared.device)
            told = [] if callbacks is None else [callbacks]
            with building(prepared):
                loop = Loop(prepared, prepared.build_model(), report, stop, told, started=started)
                if config.resume:
                    loop.take_up()
        except (AprError, RefusedError, OSError) as error:
            if run_dir_was_there:
                _record_refusal(config.run_dir, error)
            raise
        # A run that is stopped at once leaves a thread that may still write.
        context.callback(lambda: loop.when_saved(holds.pop_all().close))
        run = _Run(prepared, loop, report, stop, holds)
        if config.tensorboard:
            metrics = config.run_dir / rundir.METRICS
            events = EventFiles(
                config.run_dir / rundir.EVENTS,
                first_step=loop.state.step,
                records=read_metrics(metrics) if metrics.exists() else (),
            )
            told.append(events.callbacks)
            context.callback(events.close)
        return run.result()


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _record_refusal(run_dir: Path, error: Exception) -> None:
    if not rundir.holds_run(run_dir):
        refused = Result(
            status="REFUSED",
            exit_code=exit_code(error),
            detail="; ".join(messages(error)),
            versions=_versions(),
        )
        write_json(run_dir / rundir.RESULT, refused.to_dict())


class _Run:
    """One run in its directory: claims it, runs the loop, and says what came of it."""

    def __init__(
        self,
        prepared: Prepared,
        loop: Loop,
        report: Report,
        stop: StopRequest,
        holds: ExitStack,
    ) -> None:
        self._first_step = loop.state.step
        self._prepared, self._loop, self._report, self._stop = prepared, loop, report, stop
        self._config, self._dir = prepared.config, prepared.config.run_dir
        if self._config.force and rundir.holds_run(self._dir):
            report.line(f"moved the run that was there to {rundir.move_away(self._dir)}")
            holds.enter_context(rundir.claimed(self._dir))
        report.keep(self._dir / rundir.LOG)
        if (self._dir / rundir.RESULT).exists():
            rundir.move_away(self._dir / rundir.RESULT)
        rundir.write_config(self._dir, self._config)
        for line in summary(prepared):
            report.line(line)

    def result(self) -> Result:
        """Run, decide the gates and the contract, write `result.json` and the picture."""
        loop = self._loop
        end = self._run(loop)
        metrics = self._dir / rundir.METRICS
        try:
            records = read_metrics(metrics) if metrics.exists() else []
        except (RefusedError, OSError) as error:
            self._report.line(f"warning: {message(error)}")
            records = []
        made = self._write(self._describe(loop, end, records))
        self._draw(records)
        if self._config.contract is not None:
            made = self._judge(made)
        self._report.line(f"{made.status}: {made.detail}")
        for line in self._where(made):
            self._report.line(line)
        return made

    def _draw(self, records: list[dict[str, Any]]) -> None:
        """The picture; one that fails costs a line, never the run's verdict."""
        if not records:
            return
        try:
            plot_losses(records, self._dir / rundir.PLOT, target=self._target, title=self._title)
        except Exception as error:  # noqa: BLE001 (whatever a drawing library raises)
            self._report.line(f"warning: no {rundir.PLOT}: {message(error) or type(error).__name__}")

    def _where(self, made: Result) -> list[str]:
        """What was spent, and where things are."""
        speed = "" if made.tokens_per_second is None else f", {made.tokens_per_second:,.0f} tokens/s"
        spikes = f", {made.spikes} spikes" if made.spikes else ""
        skipped = f" ({made.skipped_steps} skipped)" if made.skipped_steps else ""
        lines = [
            f"{made.steps_completed:,} steps, {made.tokens_seen:,} tokens "
            f"in {format_duration(made.wall_seconds)}{speed}{spikes}{skipped}"
        ]
        if made.best_checkpoint is not None:
            loss = self._loop.best_checkpoint_loss
            lines.append(f"best model: {self._dir / made.best_checkpoint}, held-out loss {loss:.4f}")
        if made.last_checkpoint not in {None, made.best_checkpoint}:
            lines.append(f"last model: {self._dir / str(made.last_checkpoint)}")
        if made.export is not None:
            lines.append(f"weights alone, in bfloat16: {self._dir / made.export}")
        names = [
            n for n in (rundir.RESULT, rundir.METRICS, rundir.PLOT, rundir.LOG) if (self._dir / n).exists()
        ]
        return [*lines, f"in {self._dir}: {', '.join(names)}"]

    def _run(self, loop: Loop) -> _End:
        try:
            try:
                ended = loop.run()
                if _EXIT_CODES[ended.status] == 0:
                    loop.export()
                return _End(ended.status, _EXIT_CODES[ended.status], ended.detail)
            except Interrupted:
                return self._interrupted(loop)
        except StoppedAtOnce as stopped:
            loop.abandon()
            last = self._relative(loop.last_checkpoint)
            where = f"--resume goes on from {last}" if last else "nothing was saved"
            return _End("INTERRUPTED", 128 + stopped.signal, f"{stopped}; {where}")
        except DisagreementError as error:
            return _End("REFUSED", EXIT_REFUSED, str(error))
        except (RefusedError, AprError, OSError) as error:
            return _End("FAILED", exit_code(error), message(error))
        except Exception as error:  # noqa: BLE001 (whatever it is, the run says so in its own files)
            if is_out_of_memory(error):
                self._report.line(f"out of memory: {str(error).splitlines()[0]}")
                return _End("FAILED", EXIT_UNFORESEEN, out_of_memory(self._config, self._prepared.device))
            with suppress(OSError):  # a full disk must not hide what went wrong
                (self._dir / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            first = str(error).splitlines()[0] if str(error) else ""
            return _End("FAILED", EXIT_UNFORESEEN, f"{type(error).__name__}: {first} (see traceback.txt)")

    def _interrupted(self, loop: Loop) -> _End:
        number = self._stop.signal or signal.SIGINT
        saved = loop.save_the_rest()
        where = (
            f"saved {saved.relative_to(self._dir)}, --resume goes on" if saved else "nothing was trained yet"
        )
        return _End("INTERRUPTED", 128 + number, f"{number.name} after {loop.state.step} steps; {where}")

    def _describe(self, loop: Loop, end: _End, records: list[dict[str, Any]]) -> Result:
        state = loop.state
        # An earlier part of the run may have been made elsewhere.
        mine = [r for r in records if r["step"] >= self._first_step]
        speeds = [r["tokens_per_sec"] for r in mine if r.get("tokens_per_sec") is not None]
        steady = speeds[_WARM_UP_STEPS:] or speeds
        mfus = [r["mfu"] for r in mine if r.get("mfu") is not None]
        decided = self._gates(loop, records)
        lost = {"metrics": "the records of {} steps", "artifacts": "{}"}
        broken = [lost[g.name].format(g.value) for g in decided if g.passed is False and g.name in lost]
        if broken and end.exit_code == 0:
            end = _End("FAILED", EXIT_REFUSED, f"the run ended, but not whole: {', '.join(broken)}")
        return Result(
            status=end.status,
            exit_code=end.exit_code,
            detail=end.detail,
            steps_completed=state.step,
            epochs_completed=state.epochs,
            tokens_seen=state.tokens_seen,
            wall_seconds=loop.wall,
            step0_train_loss=state.step0_train_loss,
            initial_val_loss=state.initial_val_loss,
            final_val_loss=state.final_val_loss,
            best_val_loss=state.best_val_loss,
            spikes=state.spikes,
            skipped_steps=state.skipped_steps,
            val_loss_history=tuple(state.val_loss_history),
            best_checkpoint=self._relative(loop.best_checkpoint),
            last_checkpoint=self._relative(loop.last_checkpoint),
            export=self._relative(loop.exported),
            gates=decided,
            device=str(self._prepared.device),
            peak_memory_bytes=peak_memory_bytes(self._prepared.device),
            tokens_per_second=round(statistics.median(steady), 3) if steady else None,
            mfu=round(statistics.median(mfus[_WARM_UP_STEPS:] or mfus), 4) if mfus else None,
            versions=_versions(),
            seed=self._config.seed,
            resumed_from=self._relative(loop.resumed_from),
        )

    def _gates(self, loop: Loop, records: list[dict[str, Any]]) -> tuple[Gate, ...]:
        state, config = loop.state, self._config
        cap = gates.first_cap(config.mode_defaults.first_val_loss_cap, self._prepared.model_config.vocab_size)
        return (
            gates.metrics(records, state.step),
            gates.artifacts(self._dir, state.epochs),
            loop.agreement,
            gates.divergence(state.val_loss_history, cap),
            Gate("numerics", loop.finite, None if loop.finite else "NaN or Inf", "finite"),
            gates.patience(state.val_loss_history, state.best_epoch, epochs=config.patience,
                           min_epochs=config.min_epochs),
            Gate("exhaustion", not loop.exhausted, loop.windows_seen, loop.windows_allowed),
            gates.target(state.final_val_loss, self._target),
        )  # fmt: skip

    def _judge(self, made: Result) -> Result:
        """Decide the contract from what is on disk by now; never changes the exit code."""
        from apr.contracts import check

        assert self._config.contract is not None
        try:
            verdict = check(self._config.contract, self._dir)
        except (AprError, RefusedError, OSError) as error:
            self._report.line(f"contract not decided: {error}")
            made = replace(
                made, contract={"contract": str(self._config.contract), "ok": False, "error": str(error)}
            )
        else:
            self._report.line(str(verdict))
            made = replace(made, contract=verdict.to_dict())
        return self._write(made)

    def _write(self, made: Result) -> Result:
        """Write `result.json`; where that fails, the run failed, and says so all the same."""
        try:
            write_json(self._dir / rundir.RESULT, made.to_dict())
        except OSError as error:
            if made.status == "FAILED":
                self._report.line(f"warning: {message(error)}")
                return made
            detail = f"{message(error)} (by then {made.status}: {made.detail})"
            return replace(made, status="FAILED", exit_code=exit_code(error), detail=detail)
        return made

    def _relative(self, path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(self._dir))

    @property
    def _title(self) -> str:
        config, model = self._config, self._prepared.model_config
        name = config.init.stem if config.init is not None else Path(str(config.arch)).stem
        size = f"{model.family}, {self._prepared.parameters / 1e6:.1f} M parameters"
        return f"{name} ({size}) on {config.dataset.absolute().name}, {config.mode}"

    @property
    def _target(self) -> float:
        return self._config.target_val_loss


def _versions() -> dict[str, str]:
    from apr import __version__

    versions = {"apr": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda is not None and torch.cuda.is_available():
        versions["cuda"] = torch.version.cuda
    return versions

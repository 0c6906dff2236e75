"""A run from its options to its result, in three blocks: claim the directory, prepare, run."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, TextIO

from apr.errors import EXIT_UNFORESEEN, AprError, RefusedError, exit_code, message, messages
from apr.files import write_atomically, write_json
from apr.plurals import counted
from apr.train import rundir
from apr.train.checkpoint.paths import list_checkpoints
from apr.train.claim import Claim
from apr.train.ends import Ending, ending
from apr.train.finish import finish, versions
from apr.train.finished import finished_result
from apr.train.loop import Loop
from apr.train.machine.deadline import OutOfTime
from apr.train.machine.device import peak_memory_bytes, reset_peak_memory
from apr.train.machine.out_of_memory import is_out_of_memory, refusing_a_model_too_large
from apr.train.machine.settings import prefer_expandable_segments, training_settings
from apr.train.machine.signals import Interrupted, StoppedAtOnce, StopRequest
from apr.train.parallel.faults import Faults, is_of_others
from apr.train.parallel.launched import launched_ranks
from apr.train.parallel.world import joined
from apr.train.record.metrics import read_metrics
from apr.train.record.report import Report
from apr.train.record.result import Result
from apr.train.record.tensorboard import EventFiles
from apr.train.start.fitting import check_same_micro_batch, out_of_memory
from apr.train.start.planning import summary
from apr.train.start.preflight import prepare
from apr.train.start.same_ranks import check_same

# That of coreutils' timeout(1).
EXIT_OUT_OF_TIME = 124

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from apr.train.config import PretrainConfig
    from apr.train.parallel.world import World
    from apr.train.prepared import Prepared
    from apr.train.record.callbacks import Callbacks


def pretrain(
    config: PretrainConfig,
    *,
    callbacks: Callbacks | None = None,
    out: TextIO | None = None,
    started: float | None = None,
) -> Result:
    """Train, and write to the run directory all that it promises, however the run ends.

    It works in any thread, in a notebook, and several times in one process: the caller's settings of torch
    (random numbers, default dtype, gradient mode) and signal handlers do not affect it and are restored. In
    the main thread, SIGINT and SIGTERM save and end the run (status INTERRUPTED); no signal reaches another
    thread.

    Args:
        config: the options.
        callbacks: functions that are called with the records of steps, evaluations and checkpoints.
        out: where lines for people are printed; standard output by default.
        started: `time.monotonic()` of when the run's time began, for `wall_seconds` and `max_minutes`; the
            call by default.

    Raises:
        AprError, OSError, RefusedError: the run was refused before its first step. `result.json` records it
            if the run directory existed, held no run, and was not in use by another one.
    """
    if started is None:
        started = time.monotonic()
    if config.resume:
        # Before the claim, which creates the directory.
        rundir.check_holds_run(config.run_dir)
    prefer_expandable_segments()
    with (
        # Before the claim and the checks: a signal that arrives in them is noted, and ends the run in order.
        StopRequest(launched=launched_ranks() > 1) as stop,
        joined(config.rank_timeout) as world,
        Report((sys.stdout if out is None else out) if world.leads else None) as report,
        # Claim: from here on no other process writes to the run directory.
        _claimed(config.run_dir, world) as claim,
    ):
        finished = finished_result(config, world.size) if config.resume else None
        if finished is not None:
            result, needed = finished
            report.line(
                f"{config.run_dir}: the run is finished ({result.status}: {result.detail}); nothing was "
                f"changed. Use {needed} to train for longer"
            )
            return result
        with (
            # Prepare: what can refuse the run does so here, before any file of the directory changes.
            _prepared(config, world, claim, report, stop, started=started) as loop,
            # Run. On the way out, event files are closed, torch's settings are restored, the claim is
            # released (by another thread if a checkpoint is still being written), the caller's signal
            # handlers return, and the log is closed.
            nullcontext() if claim is None else _files_open(loop, claim, report, callbacks),
        ):
            faults = Faults(world)
            return _concluded(loop, _train(loop, report, stop, faults), report, faults, out)


@contextmanager
def _claimed(run_dir: Path, world: World) -> Iterator[Claim | None]:
    """Claim the run directory for all ranks: the leading one does, and the others have no claim."""
    with ExitStack() as claims:
        claim = None
        with world.together():
            if world.leads:
                claim = claims.enter_context(Claim(run_dir))
        yield claim


@contextmanager
def _prepared(
    config: PretrainConfig,
    world: World,
    claim: Claim | None,
    report: Report,
    stop: StopRequest,
    *,
    started: float,
) -> Iterator[Loop]:
    """Check everything and build the model; within the context, torch has the settings of a run."""
    with ExitStack() as settings:
        try:
            prepared = _prepare_together(config, world)
            device, deterministic = prepared.device, prepared.config.deterministic
            settings.enter_context(training_settings(device, deterministic=deterministic))
            reset_peak_memory(device)  # an earlier run of this process may have needed more
            with world.together(), refusing_a_model_too_large(prepared.parameters, device):
                loop = Loop(prepared, prepared.build_model(), report, stop, started=started)
                loop.restore()
        except (AprError, RefusedError, OSError) as error:
            # A refusal creates no directory, and does not replace the result of a run.
            if claim is not None and claim.existed and not rundir.holds_run(config.run_dir):
                refused = Result(
                    status="REFUSED",
                    exit_code=exit_code(error),
                    detail="; ".join(messages(error)),
                    versions=versions(),
                )
                write_json(config.run_dir / rundir.RESULT, refused.to_dict())
            raise
        # From here on a thread may be writing to the directory.
        if claim is not None:
            claim.keep_while_saving(loop.saver)
        try:
            yield loop
        finally:
            loop.release()


def _prepare_together(config: PretrainConfig, world: World) -> Prepared:
    """Check everything on all ranks, and refuse the run on all of them if one sees a problem."""
    prepared = None
    # The leading one first: the others need not scan again the shards whose scan it keeps.
    for leads in (True, False):
        with world.together():
            if world.leads is leads:
                prepared = prepare(config, world)
                for windows in (prepared.split.train, prepared.split.held_out):
                    windows.shards.keep_scan()
    assert prepared is not None
    check_same_micro_batch(prepared)
    if world.size > 1:
        with world.together():
            check_same(prepared)
    return prepared


@contextmanager
def _files_open(loop: Loop, claim: Claim, report: Report, callbacks: Callbacks | None) -> Iterator[None]:
    """Begin the run's files: an earlier run or result is moved away, the options and the plan are written."""
    config, run_dir = loop.prepared.config, loop.prepared.config.run_dir
    if config.force and rundir.holds_run(run_dir):
        report.line(f"moved the earlier run to {claim.move_run_away()}")
    # After the move, which would have taken the log along.
    report.open_log(run_dir / rundir.LOG)
    # A resumed run that is killed must not leave the result of its earlier part as if it were its own.
    if (run_dir / rundir.RESULT).exists():
        rundir.move_away(run_dir / rundir.RESULT)
    rundir.write_config(run_dir, config)  # before the first step: a killed run needs it to be resumed
    for line in summary(loop.prepared):
        report.line(line)
    if callbacks is not None:
        loop.recorder.callbacks.append(callbacks)
    if not config.tensorboard:
        yield
        return
    metrics = run_dir / rundir.METRICS
    records = read_metrics(metrics) if metrics.exists() else ()
    with closing(EventFiles(run_dir / rundir.EVENTS, first_step=loop.first_step, records=records)) as events:
        loop.recorder.callbacks.append(events.callbacks)
        yield


def _train(loop: Loop, report: Report, stop: StopRequest, faults: Faults) -> Ending:
    """Run the loop, and turn whatever it raises into an ending: the run directory must say what happened."""
    try:
        return _until_asked_to_stop(loop, stop)
    except StoppedAtOnce as stopped:
        loop.saver.abandon()
        last = loop.saver.last
        kept = "nothing was saved"
        if last is not None:
            kept = f"--resume continues from {last.path.relative_to(loop.prepared.config.run_dir)}"
        ended = Ending("INTERRUPTED", 128 + stopped.signal, f"{stopped}; {kept}")
        faults.own(ended.detail, ended.exit_code)
        return ended
    except Exception as error:  # noqa: BLE001 (a callback, or a fault of ours)
        lost = str(error) if is_of_others(error) else None
        ended = _failure(loop, error, report) if lost is None else Ending("FAILED", EXIT_UNFORESEEN, lost)
    # Here the error is gone, and with it what it held: the connections, for whose end other ranks wait.
    loop.release()
    if lost is None:
        faults.own(ended.detail, ended.exit_code)
    else:
        fault = faults.of_others(lost, loop.step_seconds)
        ended = Ending("FAILED", fault.exit_code, fault.detail)
    # Not for a second signal, a BaseException: it waits for no disk.
    with suppress(StoppedAtOnce):
        loop.saver.join()
    return ended


def _until_asked_to_stop(loop: Loop, stop: StopRequest) -> Ending:
    """Run the loop to its end, or save when a signal or --max-minutes asks it to stop."""
    config, run_dir = loop.prepared.config, loop.prepared.config.run_dir
    try:
        ended = loop.run()
        if ended.exit_code == 0:
            loop.export()
        return ended
    except (Interrupted, OutOfTime) as request:
        # The caller handles what may happen meanwhile: a second signal may come, or the disk may be full.
        saved = loop.saver.save_unsaved_steps(loop.state)
        if isinstance(request, OutOfTime) and (saved is None or saved.path == loop.resumed_from):
            # Not with the exit code below: a job that submits itself again at it would do so forever.
            return ending(
                "REFUSED",
                f"--max-minutes {config.max_minutes:g} is too short to train and save a step or to "
                "evaluate; pass --resume with a larger --max-minutes",
            )
        # 128 + the signal's number, as shells report it: 130 for SIGINT, 143 for SIGTERM.
        number = stop.signal or signal.SIGINT
        reason, code = number.name, 128 + number
        if isinstance(request, OutOfTime):
            reason, code = f"out of time (--max-minutes {config.max_minutes:g})", EXIT_OUT_OF_TIME
        kept = "no step was trained yet"
        if saved is not None:
            kept = f"saved {saved.path.relative_to(run_dir)}, pass --resume to continue"
        detail = f"{reason} after {counted(loop.state.step, 'step')}; {kept}"
        return Ending("INTERRUPTED", code, detail)


def _failure(loop: Loop, error: Exception, report: Report) -> Ending:
    """Return how a run ends that an error of this process ended."""
    run_dir = loop.prepared.config.run_dir
    if isinstance(error, (AprError, OSError)):
        return Ending("FAILED", exit_code(error), message(error))
    first_line = next(iter(str(error).splitlines()), "")
    if is_out_of_memory(error):
        report.line(f"out of memory: {first_line}")
        detail = out_of_memory(loop.prepared, error, loop.state.step)
        # It may just be being written.
        with suppress(StoppedAtOnce):
            loop.saver.join()
        last = loop.saver.last
        if last is not None:
            detail += f"; with --resume, the run continues from {last.path.relative_to(run_dir)}"
        return Ending("FAILED", EXIT_UNFORESEEN, detail)
    with suppress(OSError):  # a full disk must not hide what went wrong
        lines = traceback.format_exception(error)
        write_atomically(run_dir / "traceback.txt", "".join(lines).encode(errors="replace"))
    return Ending("FAILED", EXIT_UNFORESEEN, f"{type(error).__name__}: {first_line} (see traceback.txt)")


def _concluded(loop: Loop, ended: Ending, report: Report, faults: Faults, out: TextIO | None) -> Result:
    """Write the run's result, or wait until another rank has: all of them return it."""
    world = loop.prepared.world
    if faults.fault is None:
        result = None
        try:
            memory = world.gather([peak_memory_bytes(loop.prepared.device)])
            world.be_patient(True)
            if world.leads:
                result = finish(loop, ended, report, [int(nbytes) for (nbytes,) in memory])
            # A process that ends early with an error makes torchrun end all of them.
            return world.from_lead(result)
        except RuntimeError as error:
            if not is_of_others(error):
                raise
            if result is not None:
                return result
            lost = str(error)
        fault = faults.of_others(lost, loop.step_seconds)
        ended = Ending("FAILED", fault.exit_code, fault.detail)
    assert faults.fault is not None
    if not faults.fault.writes:
        faults.wait_until_written()
        return Result(
            status=ended.status, exit_code=ended.exit_code, detail=ended.detail, versions=versions()
        )
    if not world.leads:
        # The rank that leads is gone, and with it the voice of the run, and its claim.
        report.speak(sys.stdout if out is None else out)
        report.open_log(loop.prepared.config.run_dir / rundir.LOG)
        loop.saver.checkpoints, _ = list_checkpoints(loop.prepared.config.run_dir)
    result = finish(loop, ended, report)
    faults.written()
    return result

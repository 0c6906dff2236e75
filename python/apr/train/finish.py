"""What follows the loop: gates, `result.json`, the picture, the contract's verdict and the last lines."""

from __future__ import annotations

import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.duration import format_duration
from apr.errors import EXIT_REFUSED, AprError, RefusedError, exit_code, message
from apr.files import write_json
from apr.plurals import counted
from apr.train import gates, rundir
from apr.train.ends import Ending, met_before_training
from apr.train.machine.device import peak_memory_bytes
from apr.train.record.metrics import read_metrics
from apr.train.record.plot import plot_losses
from apr.train.record.result import Gate, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apr.train.loop import Loop
    from apr.train.record.report import Report

# Left out of the median speed: in these steps kernels are chosen and memory is touched for the first time.
_WARM_UP_STEPS = 2


def finish(loop: Loop, ended: Ending, report: Report, memory_by_rank: Sequence[int] | None = None) -> Result:
    """Decide the gates and the contract, write `result.json` and the picture, and print the last lines.

    `result.json` is written before the contract is decided, which reads it, and again with the verdict. The
    contract never changes the exit code.

    Args:
        loop: the run.
        ended: how it ended.
        report: prints lines for people.
        memory_by_rank: the most bytes that each rank held; None if only this one's are known.
    """
    config, run_dir = loop.prepared.config, loop.prepared.config.run_dir
    metrics = run_dir / rundir.METRICS
    try:
        records = read_metrics(metrics) if metrics.exists() else []
    except (RefusedError, OSError) as error:
        report.line(f"warning: {message(error)}")
        records = []
    memory = tuple(memory_by_rank or [peak_memory_bytes(loop.prepared.device)])
    result = _write(_result(loop, ended, records, memory), run_dir, report)
    if records:
        # matplotlib may fail in many ways. A run on a directory named cost$_$x once lost its contract's
        # verdict to a title that could not be parsed.
        try:
            name = config.init.stem if config.init is not None else Path(str(config.arch)).stem
            size = f"{loop.prepared.model_config.family}, {loop.prepared.parameters / 1e6:.1f} M parameters"
            title = f"{name} ({size}) on {config.dataset.absolute().name}, {config.mode}"
            plot_losses(records, run_dir / rundir.PLOT, target=config.target_val_loss, title=title)
        except Exception as error:  # noqa: BLE001
            report.line(f"warning: cannot write {rundir.PLOT}: {message(error) or type(error).__name__}")
    if config.contract is not None:
        result = _write(_with_verdict(result, config.contract, run_dir, report), run_dir, report)
    report.line(f"{result.status}: {result.detail}")
    for line in _last_lines(loop, result):
        report.line(line)
    return result


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    from apr import __version__

    versions = {"apr": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda is not None and torch.cuda.is_available():
        versions["cuda"] = torch.version.cuda
    return versions


def _result(
    loop: Loop, ended: Ending, records: list[dict[str, Any]], memory_by_rank: tuple[int, ...]
) -> Result:
    state, prepared, run_dir = loop.state, loop.prepared, loop.prepared.config.run_dir
    decided = _gates(loop, records)
    # A run whose records or files are incomplete is not a success, whatever its loss is.
    incomplete = []
    for gate in decided:
        if gate.passed is False and gate.name == "metrics":
            incomplete.append(f"{gate.value} steps without a complete record")
        elif gate.passed is False and gate.name == "artefacts":
            incomplete.append(str(gate.value))
    if incomplete and ended.exit_code == 0:
        detail = f"the run ended, but is not complete: {', '.join(incomplete)}"
        ended = Ending("FAILED", EXIT_REFUSED, detail)
    # An earlier part of the run may have been computed on another device.
    own = [record for record in records if record["step"] >= loop.first_step]
    tokens_per_second = _steady_median(own, "tokens_per_sec")
    mfu = _steady_median(own, "mfu")
    best = loop.saver.best(state)

    def relative(path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(run_dir))

    return Result(
        status=ended.status,
        exit_code=ended.exit_code,
        detail=ended.detail,
        steps_completed=state.step,
        epochs_completed=state.epochs,
        tokens_seen=state.tokens_seen,
        wall_seconds=loop.recorder.wall_seconds,
        step0_train_loss=state.step0_train_loss,
        initial_val_loss=state.initial_val_loss,
        final_val_loss=state.final_val_loss,
        best_val_loss=state.best_val_loss,
        target_met_before_training=met_before_training(prepared.config, state),
        spikes=state.spikes,
        skipped_steps=state.skipped_steps,
        val_loss_history=tuple(state.val_loss_history),
        best_checkpoint=None if best is None else relative(best.path),
        last_checkpoint=None if loop.saver.last is None else relative(loop.saver.last.path),
        export=relative(loop.exported),
        gates=decided,
        device=str(prepared.device),
        peak_memory_bytes=max(memory_by_rank),
        ranks=prepared.world.size,
        peak_memory_by_rank=memory_by_rank,
        slowest_rank_seconds=_steady_median(own, "slowest_rank_seconds"),
        tokens_per_second=None if tokens_per_second is None else round(tokens_per_second, 3),
        mfu=None if mfu is None else round(mfu, 4),
        versions=versions(),
        seed=prepared.config.seed,
        micro_batch=prepared.config.batch_size,
        grad_accum=prepared.config.grad_accum,
        resumed_from=relative(loop.resumed_from),
    )


def _gates(loop: Loop, records: Sequence[dict[str, Any]]) -> tuple[Gate, ...]:
    state, config = loop.state, loop.prepared.config
    return (
        gates.metrics(records, state.step),
        gates.artifacts(config.run_dir, state.epochs),
        loop.agreement,
        gates.divergence(state.val_loss_history, loop.first_cap),
        Gate("numerics", loop.finite, None if loop.finite else "NaN or Inf", "finite"),
        gates.patience(
            state.val_loss_history,
            state.best_epoch,
            patience=config.patience,
            min_evaluations=config.min_evaluations,
        ),
        Gate("exhaustion", not loop.exhausted, loop.windows_seen, loop.windows_allowed),
        gates.target(state.final_val_loss, config.target_val_loss),
    )


def _steady_median(records: Sequence[dict[str, Any]], name: str) -> float | None:
    # The median: a step that waits for a checkpoint to be copied is not typical.
    values = [record[name] for record in records if record.get(name) is not None]
    # A run of one or two steps has no others.
    return statistics.median(values[_WARM_UP_STEPS:] or values) if values else None


def _write(result: Result, run_dir: Path, report: Report) -> Result:
    """Write `result.json`, and return the result; it is FAILED if the file cannot be written."""
    # A full disk must not hide what came of the run: the result is returned and printed all the same.
    try:
        write_json(run_dir / rundir.RESULT, result.to_dict())
    except OSError as error:
        if result.status == "FAILED":
            report.line(f"warning: {message(error)}")
            return result
        detail = f"{message(error)} (without this error: {result.status}: {result.detail})"
        return replace(result, status="FAILED", exit_code=exit_code(error), detail=detail)
    return result


def _with_verdict(result: Result, contract: str, run_dir: Path, report: Report) -> Result:
    from apr.contracts import check

    try:
        verdict = check(contract, run_dir)
    except (AprError, RefusedError, OSError) as error:
        report.line(f"contract not checked: {error}")
        return replace(result, contract={"contract": str(contract), "ok": False, "error": str(error)})
    report.line(str(verdict))
    return replace(result, contract=verdict.to_dict())


def _last_lines(loop: Loop, result: Result) -> list[str]:
    """Return what the run took, and where its files are."""
    run_dir = loop.prepared.config.run_dir
    duration = format_duration(result.wall_seconds)
    spent = f"{counted(result.steps_completed, 'step')}, {counted(result.tokens_seen, 'token')} in {duration}"
    if result.tokens_per_second is not None:
        spent += f", {result.tokens_per_second:,.0f} tokens/s"
    if result.spikes:
        spent += f", {counted(result.spikes, 'spike')}"
    if result.skipped_steps:
        spent += f" ({result.skipped_steps} skipped)"
    lines = [spent]
    best = loop.saver.best(loop.state)
    if best is not None and best.epoch is not None:
        lines.append(f"best model: {best.path}, held-out loss {loop.state.val_loss_history[best.epoch]:.4f}")
    if result.last_checkpoint not in {None, result.best_checkpoint}:
        lines.append(f"last model: {run_dir / str(result.last_checkpoint)}")
    if result.export is not None:
        lines.append(f"weights only, in bfloat16: {run_dir / result.export}")
    names = (rundir.RESULT, rundir.METRICS, rundir.PLOT, rundir.LOG)
    return [*lines, f"files in {run_dir}: {', '.join(name for name in names if (run_dir / name).exists())}"]

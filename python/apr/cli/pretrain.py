"""`apr pretrain`: the options of a run as flags."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from apr.cli._flags import parse_known
from apr.errors import UsageError, exit_code, messages
from apr.files import json_text
from apr.options import Alias, Unset, options_from_yaml, options_of
from apr.train.config import (
    CheckpointOptions,
    DataOptions,
    EvaluationOptions,
    HardwareOptions,
    ModelOptions,
    OptimizationOptions,
    OutputOptions,
    PretrainConfig,
)
from apr.train.parallel.launched import is_silent, launched_ranks
from apr.train.rundir import CONFIG, check_holds_run, saved_options


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a decoder on token shards, from a model file or from scratch.

    Example: apr pretrain --init model.apr --dataset shards --run-dir runs/first --num-steps 500
    """

    # The sections are the groups of --help, in this order.
    data: DataOptions
    model: ModelOptions
    optimization: OptimizationOptions
    evaluation: EvaluationOptions
    checkpoints: CheckpointOptions
    hardware: HardwareOptions
    output: OutputOptions
    config: Annotated[Path | None, Unset("none")] = None
    """YAML file of options. Flags override it; the value None unsets an option."""
    gpus: Annotated[int | None, Unset("one process")] = None
    """Train on this many GPUs of this host: start as many processes, which share the windows of each step.
    With --device cpu, processes on the CPU. For several hosts, use torchrun -m apr.pretrain."""
    plan: bool = False
    """Check everything, measure speed, and estimate memory and time without training."""
    json: bool = False
    """Print JSON to standard output: one object per line for each step, evaluation and checkpoint, and the
    result last; with --plan, the plan. All other output goes to standard error."""

    def run(self) -> int:
        """Train or plan, and return the run's exit code."""
        # Before torch is loaded, which takes seconds that --max-minutes counts.
        started = time.monotonic()
        # Imported here, because these load torch, which --help does without.
        from apr.train.machine.signals import StoppedAtOnce
        from apr.train.start.planning import plan

        sections = [getattr(self, field.name) for field in fields(self)]
        config = PretrainConfig(
            **{
                option.name: getattr(section, option.name)
                for section in sections
                if is_dataclass(section)
                for option in fields(section)
            }
        )
        if self.plan:
            planned = plan(config)
            if is_silent():
                return 0
            print(planned, file=sys.stderr if self.json else sys.stdout)
            if self.json:
                print(json_text(planned.to_dict(), indent=2))
            return 0
        try:
            return self._train(config, started)
        except StoppedAtOnce as stopped:  # before the run began, or while its end was written
            print(f"apr pretrain: {stopped}", file=sys.stderr)
            # As shells report a process that a signal ended.
            return 128 + stopped.signal

    def _train(self, config: PretrainConfig, started: float) -> int:
        from apr.train.record.callbacks import Callbacks
        from apr.train.record.report import Outlet
        from apr.train.run import pretrain

        if not self.json:
            return pretrain(config, started=started).exit_code
        # Not print: a reader that goes away must end neither the run nor its exit code. `apr pretrain | head`
        # once gave 0 for a run that failed.
        out = Outlet(None if is_silent() else sys.stdout)

        def event(kind: str, facts: dict[str, Any]) -> None:
            out.line(json_text({"event": kind, **facts}))

        callbacks = Callbacks(
            on_step=lambda record: event("step", asdict(record)),
            on_evaluation=lambda record: event("evaluation", asdict(record)),
            on_checkpoint=lambda record: event(
                "checkpoint", {**asdict(record), "path": str(record.path.relative_to(config.run_dir))}
            ),
        )
        result = pretrain(config, callbacks=callbacks, out=sys.stderr, started=started)
        event("result", result.to_dict())
        return result.exit_code


def elsewhere(command: Command, arguments: list[str]) -> int | None:
    """Run the command in as many processes as --gpus asks for, and return its exit code; None to run it here.

    Raises:
        UsageError: --gpus is no number of processes, or contradicts torchrun.
        UnavailableError: there are fewer GPUs.
    """
    ranks = launched_ranks()
    if command.gpus is not None and command.gpus < 1:
        raise UsageError(f"--gpus must be at least 1, not {command.gpus}")
    if command.gpus in {None, ranks}:
        return None
    if ranks > 1:
        raise UsageError(f"--gpus {command.gpus}: torchrun started {ranks} processes; leave out --gpus")
    # Imported here, because it loads torch.
    from apr.train.parallel.launch import check_gpus, launch

    if command.hardware.device != "cpu":
        check_gpus(command.gpus)
    return launch(command.gpus, arguments)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The flags that name a YAML file; parsed first, because it sets the defaults of the other flags."""

    config: Path | None = None
    run_dir: Annotated[Path | None, Alias("--output-dir")] = None
    resume: bool = False


def default(arguments: list[str]) -> Command | None:
    """Return the options of the file that --config names, or else of the run that --resume continues.

    Raises:
        FileNotFoundError: --config names no file, or --resume no run directory.
        RefusedError: the directory that --resume names does not hold a run.
        OptionsError, UsageError: the file does not hold options.
    """
    source = parse_known(_Source, "apr pretrain", arguments)
    path = source.config
    if source.resume and not {"-h", "--help"} & set(arguments):
        # Before the other flags are parsed, which without a run would be reported as missing.
        if source.run_dir is not None:
            check_holds_run(source.run_dir)
        elif path is None:
            raise UsageError("--resume needs --run-dir, the directory of the run")
    if path is not None:
        values = options_from_yaml(PretrainConfig, path)
    elif source.resume and source.run_dir is not None and (source.run_dir / CONFIG).exists():
        path, values = source.run_dir / CONFIG, saved_options(source.run_dir)
    else:
        return None
    sections: dict[str, Any] = {}
    for name, section in get_type_hints(Command).items():
        if is_dataclass(section) and isinstance(section, type):
            options = options_of(section)
            given = {option: values[option] for option in options if option in values}
            # What the file lacks keeps the field's default, or must be typed.
            typed = {option: tyro.MISSING for option in options if options[option].required}
            sections[name] = section(**typed | given)
    return Command(**sections, config=path)


def refusal(error: BaseException) -> str:
    """Return a run that was refused before it began as the JSON object that takes the place of its result."""
    problems = messages(error)
    return json_text(
        {
            "event": "result",
            "status": "REFUSED",
            "exit_code": exit_code(error),
            "detail": "; ".join(problems),
            "problems": problems,
        }
    )

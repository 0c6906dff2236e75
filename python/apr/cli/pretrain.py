"""`apr pretrain`: the options of a run as flags."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from apr.errors import UsageError, exit_code, messages
from apr.files import json_text
from apr.train.config import PretrainConfig

# Flags that have a --no- form.
_PAIRED = {"stop_at_target", "shuffle", "compile"}


@dataclass(frozen=True, kw_only=True)
class Command(PretrainConfig):
    """Train a Qwen2 or Llama decoder on token shards: from an .apr file, or from scratch.

    Example: apr pretrain --init model.apr --dataset shards --run-dir runs/first --num-steps 500
    """

    plan: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything, measure the speed, estimate memory and time; train nothing."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON on standard output: a line for each step, evaluation and checkpoint, the result last (with
    --plan: the plan). Lines for people go to standard error."""
    config: Path | None = None
    """YAML file of options; flags win over it."""

    def run(self) -> int:
        """Train or plan; the run's exit code."""
        from apr.train.machine.signals import StoppedAtOnce
        from apr.train.start.planning import plan

        names = {field.name for field in fields(PretrainConfig)}
        options = PretrainConfig(**{name: getattr(self, name) for name in names})
        if self.plan:
            planned = plan(options)
            print(planned, file=sys.stderr if self.json else sys.stdout)
            if self.json:
                print(json_text(planned.to_dict(), indent=2))
            return 0
        try:
            return self._train(options)
        except StoppedAtOnce as stopped:  # before there was a run, or while its end was written down
            print(f"apr pretrain: {stopped}", file=sys.stderr)
            return 128 + stopped.signal

    def _train(self, options: PretrainConfig) -> int:
        from apr.train.record.callbacks import Callbacks
        from apr.train.record.report import Outlet
        from apr.train.run import pretrain

        if not self.json:
            return pretrain(options).exit_code
        out = Outlet(sys.stdout)

        def event(kind: str, facts: dict[str, Any]) -> None:
            out.line(json_text({"event": kind, **facts}))

        told = Callbacks(
            on_step=lambda record: event("step", asdict(record)),
            on_evaluation=lambda record: event("evaluation", asdict(record)),
            on_checkpoint=lambda record: event(
                "checkpoint", {**asdict(record), "path": str(record.path.relative_to(options.run_dir))}
            ),
        )
        result = pretrain(options, callbacks=told, out=sys.stderr)
        event("result", result.to_dict())
        return result.exit_code


def refusal(error: BaseException) -> str:
    """A run that was refused before it began, as the JSON object that takes the place of its result."""
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


def flags_from_file(arguments: list[str]) -> list[str]:
    """A YAML file's options as flags: --config's, or those of the run that --resume goes on with.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file does not hold options.
    """
    path = _value(arguments, "--config")
    run_dir = _value(arguments, "--run-dir", "--output-dir")
    if path is None and "--resume" in arguments and run_dir is not None:
        from apr.train.rundir import CONFIG

        saved = Path(run_dir) / CONFIG
        path = str(saved) if saved.exists() else None
    if path is None:
        return []
    flags = []
    for name, value in PretrainConfig.from_yaml(Path(path)).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            if value or name in _PAIRED:
                flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


def _value(arguments: list[str], *names: str) -> str | None:
    """The value of a flag, before the flags are parsed."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in names:
            if equals:
                return value
            if i + 1 < len(arguments):
                return arguments[i + 1]
            raise UsageError(f"{name} needs a value")
    return None

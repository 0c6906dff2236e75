"""A run directory: claiming it, whether it holds a run, and what a resumed run may change."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from apr import held
from apr.errors import PreflightError, RefusedError, UsageError
from apr.files import write_atomically
from apr.options import options_from_yaml, options_of
from apr.train.config import PretrainConfig, ResolvedConfig, Resume

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from apr.options import Option

RESULT, CONFIG, METRICS, LOG, PLOT = "result.json", "config.yaml", "train.jsonl", "run.log", "loss.png"
EVENTS, EXPORT, SAMPLES = "tensorboard", "final.apr", "samples.jsonl"


def claimed(run_dir: Path) -> AbstractContextManager[None]:
    """Hold a run directory against other processes; it is created if it does not exist.

    Raises:
        RefusedError: another run holds it.
        NotADirectoryError: the path is not a directory.
    """
    return held.claimed(run_dir, "another run", "wait for it, or use another --run-dir")


def holds_run(run_dir: Path) -> bool:
    """Whether the directory holds a run; a refusal that was recorded there does not count."""
    # Only training writes these, so they decide, whatever result.json says.
    if (run_dir / METRICS).exists() or (run_dir / "ckpt").exists():
        return True
    try:
        result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (run_dir / CONFIG).exists()
    return not (isinstance(result, dict) and result.get("status") == "REFUSED")


def check_run_dir(config: PretrainConfig) -> None:
    """Check that the run directory holds what --resume or --force, or neither, asks for.

    Raises:
        RefusedError: it holds a run and neither --resume nor --force is given; it holds none and --resume is;
            or --force would move away a file that the new run reads.
    """
    run_dir, taken = config.run_dir, holds_run(config.run_dir)
    if taken and not (config.resume or config.force):
        raise RefusedError(
            f"{run_dir}: already holds a run; pass --resume to continue it, or --force to move it away"
        )
    if config.resume and not taken:
        raise RefusedError(f"{run_dir}: no run to resume")
    if taken and config.force:
        resolved = run_dir.resolve()
        for flag, path in config.inputs().items():
            if path.exists() and path.resolve().is_relative_to(resolved):
                raise RefusedError(
                    f"{flag} {path}: is inside the run that --force would move away; copy it out first"
                )


def move_away(path: Path) -> Path:
    """Rename a file or directory to NAME.bak-N with the first N that is free, and return the new path."""
    # Never overwritten: the second --force would otherwise lose the run that the first one moved away.
    names = (path.with_name(f"{path.name}.bak-{n}") for n in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def write_config(run_dir: Path, config: PretrainConfig) -> None:
    """Write config.yaml atomically."""
    import yaml

    text = yaml.safe_dump(config.to_yaml(), sort_keys=False, allow_unicode=True)
    write_atomically(run_dir / CONFIG, text.encode())


def resumed_config(config: PretrainConfig) -> PretrainConfig:
    """Return the options of a resumed run: those given, which must agree with those in config.yaml.

    An option that is None here and was resolved from the mode or the device when the run started keeps the
    value it had.

    Raises:
        FileNotFoundError: the run directory has no config.yaml.
        UsageError: config.yaml is not valid or lacks options.
        RefusedError: options differ that a resumed run must keep; has a line for each, with both values.
    """
    path, options = config.run_dir / CONFIG, options_of(PretrainConfig)
    saved = options_from_yaml(PretrainConfig, path)
    missing = [name for name, option in options.items() if option.required and name not in saved]
    if missing:
        raise UsageError(f"{path}: {', '.join(missing)} missing; restore the file that the run wrote")
    unset = [name for name in ResolvedConfig.__annotations__ if getattr(config, name) is None]
    config = replace(config, **{name: saved[name] for name in unset if name in saved})
    before = PretrainConfig(**saved)
    # Without a checkpoint nothing knows the contents of a moved file, so paths must stay.
    has_checkpoint = any((config.run_dir / "ckpt").glob("*.apr"))
    conflicts = [
        _conflict(option, config, before, has_checkpoint=has_checkpoint) for option in options.values()
    ]
    # --batch-size and --grad-accum share one line.
    problems = [RefusedError(f"{config.run_dir}: {line}") for line in dict.fromkeys(conflicts) if line]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise PreflightError(problems)
    return config


def _conflict(
    option: Option, config: PretrainConfig, before: PretrainConfig, *, has_checkpoint: bool
) -> str | None:
    """Return why a resumed run cannot change an option as it does, or None."""
    now, was = getattr(config, option.name), getattr(before, option.name)
    advice = "a resumed run must not change it"
    match option.marker(Resume):
        case Resume.FREE | Resume.NOT_SAVED:
            return None
        case Resume.MOVABLE:
            if has_checkpoint or (now and was and Path(now).resolve() == Path(was).resolve()):
                return None
        case Resume.SPLIT:
            if config.windows_per_step == before.windows_per_step:
                return None
            return (
                f"the run has {before.windows_per_step} windows per step (--batch-size {before.batch_size} "
                f"--grad-accum {before.grad_accum}), not {config.windows_per_step}; {advice}"
            )
        case Resume.EXTENDABLE if now > was:
            if config.extend:
                return None
            advice += "; pass --extend to train for longer"
    if now == was:
        return None
    return f"the run was started with {option.flag} {was}, not {now}; {advice}"

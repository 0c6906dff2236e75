"""A run directory: claiming it, whether it holds a run, and what a resumed run may change."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import held
from apr.errors import PreflightError, RefusedError, UsageError
from apr.files import beside, read_options, write_atomically
from apr.options import options_from_yaml, options_of
from apr.recognize import recognized
from apr.train.config import PretrainConfig, ResolvedConfig, Resume

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from apr.options import Option

RESULT, CONFIG, METRICS, LOG, PLOT = "result.json", "config.yaml", "train.jsonl", "run.log", "loss.png"
EVENTS, EXPORT, SAMPLES = "tensorboard", "final.apr", "samples.jsonl"
# What older versions wrote to config.yaml where no target was asked for, by mode.
_FORMER_TARGETS = {"finetune": 2.2, "from-init": 2.2, "from-scratch": 3.0}


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
        RefusedError: it holds a run and neither --resume nor --force is given; or --force would move away a
            file that the new run reads.
        OSError, RefusedError: --resume is given, and `check_holds_run` raises it.
    """
    if config.resume:
        check_holds_run(config.run_dir)
        return
    run_dir, taken = config.run_dir, holds_run(config.run_dir)
    if taken and not config.force:
        raise RefusedError(
            f"{run_dir}: already holds a run; pass --resume to continue it, or --force to move it away",
            path=run_dir,
        )
    if taken:
        resolved = run_dir.resolve()
        for flag, path in config.inputs().items():
            if path.exists() and path.resolve().is_relative_to(resolved):
                raise RefusedError(
                    f"{flag} {path}: is inside the run that --force would move away; copy it out first"
                )


def check_holds_run(run_dir: Path) -> None:
    """Check that a directory holds a run that --resume can continue.

    Raises:
        FileNotFoundError: the directory, or its config.yaml, does not exist.
        NotADirectoryError: the path is not a directory.
        RefusedError: it does not hold a run; says what it holds instead.
    """
    if not run_dir.exists():
        reason = f"no such run directory; {_other_run(run_dir) or 'check --run-dir'}"
        raise FileNotFoundError(errno.ENOENT, reason, str(run_dir))
    if not run_dir.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a run directory but a file", str(run_dir))
    if not holds_run(run_dir):
        advice = _other_run(run_dir) or "check --run-dir, or leave out --resume to start a run there"
        raise RefusedError(f"{run_dir}: no run to resume, {_contents(run_dir)}; {advice}", path=run_dir)
    if not (run_dir / CONFIG).exists():
        reason = "missing; restore the file that the run wrote, or pass --force to start over"
        raise FileNotFoundError(errno.ENOENT, reason, str(run_dir / CONFIG))


def check_is_run(run_dir: Path) -> None:
    """Check that a directory has the files of a run, or of one that was refused before its first step.

    Raises:
        FileNotFoundError: the directory does not exist.
        NotADirectoryError: the path is not a directory.
        RefusedError: it is not the directory of a run; says what it holds instead.
    """
    if not run_dir.exists():
        reason = f"no such run directory; {_other_run(run_dir) or 'pass the --run-dir of a run'}"
        raise FileNotFoundError(errno.ENOENT, reason, str(run_dir))
    if not run_dir.is_dir():
        reason = f"not a run directory but a file; {_other_run(run_dir) or 'pass the --run-dir of a run'}"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(run_dir))
    if not holds_run(run_dir) and not (run_dir / RESULT).exists():
        advice = _other_run(run_dir) or "pass the --run-dir of a run"
        raise RefusedError(f"{run_dir}: not a run, {_contents(run_dir)}; {advice}", path=run_dir)


def _contents(directory: Path) -> str:
    """Return in words what a directory that is not a run holds."""
    names = {path.name for path in directory.iterdir()}
    if not names:
        return "the directory is empty"
    if RESULT in names:
        return "only a run that was refused before its first step"
    # Without the advice after the semicolon, which is for a path that is to be read.
    return f"but {recognized(directory).partition(';')[0] or 'other files'}"


def _other_run(run_dir: Path) -> str | None:
    """Return a question with the path of a run that may have been meant; None if there is none nearby."""
    path = run_dir.absolute()
    # A run's own folder, such as RUN/ckpt.
    if holds_run(path.parent):
        return f"did you mean {run_dir.parent}?"
    # One level up or down is enough: a run that is further away is not a slip of the finger.
    beside = get_close_matches(path.name, _runs_in(path.parent), n=1)
    if beside:
        return f"did you mean {run_dir.parent / beside[0]}?"
    within = _runs_in(path)
    return f"did you mean {run_dir / within[0]}?" if within else None


def _runs_in(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if holds_run(path))
    except OSError:
        return []


def move_away(path: Path) -> Path:
    """Rename a file or directory to NAME.bak-N with the first N that is free, and return the new path."""
    # Never overwritten: the second --force would otherwise lose the run that the first one moved away.
    names = (beside(path, f".bak-{n}") for n in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def write_config(run_dir: Path, config: PretrainConfig) -> None:
    """Write config.yaml atomically."""
    import yaml

    text = yaml.safe_dump(config.to_yaml(), sort_keys=False, allow_unicode=True)
    write_atomically(run_dir / CONFIG, text.encode())


def saved_options(run_dir: Path) -> dict[str, Any]:
    """Return the options in a run's config.yaml. A target that nobody asked for is left out.

    Raises:
        FileNotFoundError: the run directory has no config.yaml.
        UsageError: config.yaml is not valid.
    """
    values = options_from_yaml(PretrainConfig, run_dir / CONFIG)
    if former_target(run_dir) is not None:
        del values["target_val_loss"]
    return values


def former_target(run_dir: Path) -> float | None:
    """Return the target of a run of an older version if it is that version's default; else None."""
    values = read_options(run_dir / CONFIG)
    target = values.get("target_val_loss")
    # Newer versions write `eval_every`, and a target only if one was asked for.
    if "eval_every" in values or target is None or target != _FORMER_TARGETS.get(str(values.get("mode"))):
        return None
    return float(target)


def resumed_config(config: PretrainConfig, ranks: int = 1) -> PretrainConfig:
    """Return the options of a resumed run: those given, which must agree with those in config.yaml.

    An option that is None here and was resolved from the mode, the device or other options when the run
    started keeps the value it had, and so does the target. A step keeps its windows, however many ranks share
    them now.

    Raises:
        FileNotFoundError: the run directory has no config.yaml.
        UsageError: config.yaml is not valid or lacks options.
        RefusedError: options differ that a resumed run must keep; has a line for each, with both values.
    """
    path, options = config.run_dir / CONFIG, options_of(PretrainConfig)
    saved = saved_options(config.run_dir)
    missing = [name for name, option in options.items() if option.required and name not in saved]
    if missing:
        raise UsageError(
            f"{path}: {', '.join(missing)} missing; restore the file that the run wrote", path=path
        )
    kept = (*ResolvedConfig.__annotations__, "target_val_loss", "global_batch")
    unset = [name for name in kept if getattr(config, name) is None]
    config = replace(config, **{name: saved[name] for name in unset if name in saved})
    before = PretrainConfig(**saved)
    if ranks > 1 and config.global_batch is None:
        # It began in one process, whose --grad-accum is not that of a rank unless it was passed again.
        accum = None if config.grad_accum == before.grad_accum else config.grad_accum
        config = replace(config, grad_accum=accum, global_batch=before.windows_per_step)
    # Without a checkpoint nothing knows the contents of a moved file, so paths must stay.
    has_checkpoint = any((config.run_dir / "ckpt").glob("*.apr"))
    conflicts = [
        _conflict(option, config, before, has_checkpoint=has_checkpoint) for option in options.values()
    ]
    # --batch-size, --grad-accum and --global-batch share one line.
    problems = [
        RefusedError(f"{config.run_dir}: {line}", path=config.run_dir)
        for line in dict.fromkeys(conflicts)
        if line
    ]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise PreflightError(problems)
    return config.over_ranks(ranks)


def check_new_paths(config: PretrainConfig) -> None:
    """Check that files that a resumed run can do without exist if they are named again.

    Raises:
        FileNotFoundError: one does not exist, and is not the one that config.yaml names.
    """
    before = PretrainConfig(**saved_options(config.run_dir)).inputs()
    for flag, path in config.inputs().items():
        is_new = flag in {"--init", "--arch", "--tokenizer"} and path.absolute() != before.get(flag)
        if is_new and not path.exists():
            reason = f"no such file; check {flag}, or leave it out"
            raise FileNotFoundError(errno.ENOENT, reason, str(path))


def _split(config: PretrainConfig) -> str:
    """Return the options that give the windows of a step."""
    if config.global_batch is not None:
        return f"--global-batch {config.global_batch}"
    return f"--batch-size {config.batch_size} --grad-accum {config.grad_accum or 1}"


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
                f"the run has {before.windows_per_step} windows per step ({_split(before)}), not "
                f"{config.windows_per_step} ({_split(config)}); {advice}"
            )
        case Resume.EXTENDABLE if now > was:
            if config.extend:
                return None
            advice += "; pass --extend to train for longer"
        case Resume.EXTENDABLE if now < was:
            if config.shorten:
                return None
            advice += "; pass --shorten to end it earlier"
    if now == was:
        return None
    return f"the run was started with {option.flag} {was}, not {now}; {advice}"

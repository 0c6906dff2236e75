"""A run directory: whether it holds a run, moving one away, what a resumed run may do otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr import held
from apr.errors import RefusedError, UsageError
from apr.files import write_atomically
from apr.train.config import PretrainConfig

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

RESULT, CONFIG, METRICS, LOG, PLOT = "result.json", "config.yaml", "train.jsonl", "run.log", "loss.png"
EVENTS, EXPORT = "tensorboard", "final.apr"

# What a resumed run may do otherwise: none of it changes what is computed.
_FREE = {"run_dir", "device", "keep", "contract", "patience", "min_epochs", "target_val_loss",
         "stop_at_target", "tensorboard", "force_under_provisioned", "save_every", "save_dtype"}  # fmt: skip
# Where they lie is free: a checkpoint knows by hashes and sizes what they held.
_IDENTIFIED = {"dataset", "val_dataset", "init", "tokenizer", "arch"}
# Windows of a step may be cut otherwise into micro-batches: the order of data stays.
_CUT = ("batch_size", "grad_accum")
# Left open, these follow from the mode or the device: the run keeps what it had.
_FOLLOWS = ("lr", "warmup_steps", "target_val_loss", "precision")


def claimed(run_dir: Path) -> AbstractContextManager[None]:
    """Hold a run directory, made if it is not there, against every other run.

    Raises:
        RefusedError: another run holds it.
        NotADirectoryError: something else has its name.
    """
    return held.claimed(run_dir, "another run", "wait for it, or name another --run-dir")


def holds_run(run_dir: Path) -> bool:
    """Whether there is a run; a refusal alone is none."""
    if (run_dir / METRICS).exists() or (run_dir / "ckpt").exists():
        return True
    try:
        result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (run_dir / CONFIG).exists()
    return not (isinstance(result, dict) and result.get("status") == "REFUSED")


def check_free(config: PretrainConfig) -> None:
    """What the directory holds fits what was asked for.

    Raises:
        RefusedError: a run is there and neither --resume nor --force was given, or none and --resume was.
    """
    there = holds_run(config.run_dir)
    if there and not (config.resume or config.force):
        raise RefusedError(f"{config.run_dir}: holds a run: --resume goes on with it, --force moves it away")
    if config.resume and not there:
        raise RefusedError(f"{config.run_dir}: holds no run to resume")
    if there and config.force:
        _check_nothing_needed_inside(config)


def _check_nothing_needed_inside(config: PretrainConfig) -> None:
    """Whether what the run is to read stays where it is when the run directory is moved away."""
    run_dir = config.run_dir.resolve()
    for name in ("init", "dataset", "val_dataset", "tokenizer", "arch", "contract"):
        value = getattr(config, name)
        path = None if value is None else Path(value).resolve()
        if path is not None and path.exists() and (run_dir == path or run_dir in path.parents):
            raise RefusedError(
                f"--{name.replace('_', '-')} {value}: lies in the run that --force would move away: "
                "copy it out first"
            )


def move_away(path: Path) -> Path:
    """Rename a file or directory to NAME.bak-N with the first free N."""
    names = (path.with_name(f"{path.name}.bak-{n}") for n in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def write_config(run_dir: Path, config: PretrainConfig) -> None:
    """Write config.yaml atomically."""
    import yaml

    text = yaml.safe_dump(config.to_yaml(), sort_keys=False, allow_unicode=True)
    write_atomically(run_dir / CONFIG, text.encode())


def as_before(config: PretrainConfig) -> PretrainConfig:
    """The options of a run that is resumed, checked against those it was started with.

    Raises:
        RefusedError: an option differs that must not; names it with both values.
    """
    before = PretrainConfig.from_yaml(config.run_dir / CONFIG)
    lost = sorted({"dataset", "run_dir"} - before.keys())
    if lost:
        raise UsageError(f"{config.run_dir / CONFIG}: lacks {', '.join(lost)}: bring the run's own file back")
    left_open = {name: before[name] for name in _FOLLOWS if getattr(config, name) is None and name in before}
    config = replace(config, **left_open)
    now = config.to_yaml()
    was = PretrainConfig(**before).to_yaml()
    free = _FREE | _IDENTIFIED if any((config.run_dir / "ckpt").glob("*.apr")) else _FREE
    for name, value in now.items():
        if value == was[name] or name in free or (name in _IDENTIFIED and _same_path(value, was[name])):
            continue
        if name in _CUT:
            _check_windows_a_step(config, was)
            continue
        if name == "num_steps" and value > was[name] and config.extend:
            continue
        hint = " (--extend allows more)" if name == "num_steps" and value > was[name] else ""
        raise RefusedError(
            f"{config.run_dir}: the run has --{name.replace('_', '-')} {was[name]}, not {value}: "
            f"a resumed run keeps it{hint}"
        )
    return config


def _same_path(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and Path(a).resolve() == Path(b).resolve()


def _check_windows_a_step(config: PretrainConfig, was: dict[str, Any]) -> None:
    before = was["batch_size"] * was["grad_accum"]
    if config.windows_per_step != before:
        raise RefusedError(
            f"{config.run_dir}: the run has --batch-size {was['batch_size']} --grad-accum "
            f"{was['grad_accum']}, {before} windows a step, not {config.batch_size} x {config.grad_accum} = "
            f"{config.windows_per_step}: a resumed run keeps their product"
        )

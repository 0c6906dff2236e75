"""What a run directory contains, read once and without torch, however the run ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.errors import AprError, RefusedError, about
from apr.files import as_utf8
from apr.held import is_held
from apr.train import rundir
from apr.train.config import PretrainConfig
from apr.train.record.metrics import read_metrics
from apr.train.record.result import Result

if TYPE_CHECKING:
    from pathlib import Path

_NUMBERS = (
    "steps_completed", "wall_seconds", "spikes", "skipped_steps", "peak_memory_bytes", "tokens_per_second",
    "mfu", "micro_batch", "grad_accum", "ranks", "slowest_rank_seconds",
)  # fmt: skip
_LARGEST_NUMBER = 1e300  # also keeps integers that no float can hold out of the arithmetic


def number(value: object) -> float | None:
    """Return a finite number of a record as a float; None for anything else that may be in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST_NUMBER else None


@dataclass(frozen=True)
class RecordedRun:
    """The files of a run."""

    path: Path
    result: Result | None
    """None if the run still trains, or if its process was killed."""
    config: PretrainConfig | None
    """None for a run that was refused before it began."""
    records: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    checkpoint: dict[str, Any]
    """The metadata of one of its checkpoints; empty if there is none."""
    running: bool
    """Whether a process is writing to the directory."""

    @property
    def name(self) -> str:
        """The name of the directory."""
        return as_utf8(self.path.resolve().name)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The records of steps."""
        return [record for record in self.records if "train_loss" in record]

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of evaluations."""
        return [record for record in self.records if "val_loss" in record]

    @property
    def seconds(self) -> float:
        """Seconds that the run took, or has taken so far."""
        if self.result is not None:
            return self.result.wall_seconds
        return max((number(record.get("wall_seconds")) or 0.0 for record in self.records), default=0.0)


def read_run(path: Path) -> RecordedRun:
    """Read the files of a run.

    Raises:
        FileNotFoundError, NotADirectoryError: the path is not a directory.
        RefusedError: the directory is not that of a run, or one of its files is damaged.
    """
    rundir.check_is_run(path)
    # Before the files: a run that ends meanwhile has written them by then.
    running = is_held(path)
    return RecordedRun(
        path,
        _result(path / rundir.RESULT),
        _config(path),
        _records(path / rundir.METRICS),
        _records(path / rundir.SAMPLES),
        _checkpoint(path / "ckpt"),
        running,
    )


def _result(path: Path) -> Result | None:
    try:
        result = Result.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, RecursionError):
        result = None
    if result is not None:
        values = [getattr(result, name) for name in _NUMBERS]
        texts = isinstance(result.status, str) and isinstance(result.detail, str)
        tables = isinstance(result.versions, dict) and isinstance(result.contract, (dict, type(None)))
        if texts and tables and all(value is None or number(value) is not None for value in values):
            return result
    reason = "not the result of a run; restore the file, or move it away to report the rest"
    raise RefusedError(f"{path}: {reason}", path=path)


def _config(path: Path) -> PretrainConfig | None:
    if not (path / rundir.CONFIG).exists():
        return None
    values = rundir.saved_options(path)
    with about(path / rundir.CONFIG):
        return PretrainConfig(**values)


def _records(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []


def _checkpoint(directory: Path) -> dict[str, Any]:
    # All checkpoints of a run have the same facts, so the first that opens will do. One may be damaged, or be
    # pruned by the running program just now.
    for path in sorted(directory.glob("*.apr"), reverse=True):
        try:
            with load(path) as file:
                if isinstance(file.metadata.get("training"), dict):
                    return file.metadata
        except (AprError, OSError):
            continue
    return {}

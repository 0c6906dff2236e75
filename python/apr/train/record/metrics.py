"""`train.jsonl`: one line of JSON for each step and each evaluation."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError
from apr.files import json_text, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

STEP_FIELDS = ("step", "train_loss", "grad_norm", "lr", "tokens_per_sec", "gpu_util_pct")
_LARGEST_EXPONENT = 700  # math.exp(710) raises OverflowError


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if a float cannot hold it."""
    return math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)


class MetricsFile:
    """A file that records are appended to."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; NaN and infinity become null."""
        self._file.write(json_text(record) + "\n")
        # A process that is killed loses no record that it has written: the kernel has all of them.
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all records. A last line that was cut off is left out: its writer was killed.

    Raises:
        RefusedError: another line is not a record.
    """
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif number < len(lines):
            raise RefusedError(
                f"{path}: line {number} is not a record of a step or an evaluation; restore the file",
                path=path,
            )
    return records


def cut_back(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Remove, atomically, the records that `keep` does not want."""
    records = [record for record in read_metrics(path) if keep(record)] if path.exists() else []
    write_atomically(path, "".join(json_text(record) + "\n" for record in records).encode())


def incomplete_steps(records: Sequence[dict[str, Any]], steps: int) -> list[int]:
    """Return the steps that do not have exactly one record with all six fields finite.

    Only `gpu_util_pct` may be null, and only for a step computed on the CPU.

    Args:
        records: the records of `train.jsonl`.
        steps: number of steps that the run has done.
    """
    # A step with two records is as incomplete as one with none: a resumed run may have repeated it.
    complete: dict[int, list[bool]] = {step: [] for step in range(steps)}
    for record in records:
        if "train_loss" not in record:
            continue
        # The device is the step's own: a run resumed on a GPU has steps of a CPU before it.
        required = STEP_FIELDS[:-1] if record.get("device") == "cpu" else STEP_FIELDS
        numbers = all(isinstance(record.get(name), (int, float)) for name in required)
        complete.setdefault(record["step"], []).append(numbers and "gpu_util_pct" in record)
    return [step for step, states in complete.items() if states != [True]]

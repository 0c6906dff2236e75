"""`train.jsonl`: a line for every step and every evaluation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError
from apr.files import json_text, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP_FIELDS = ("step", "train_loss", "grad_norm", "lr", "tokens_per_sec", "gpu_util_pct")


class MetricsFile:
    """Appends records; each is on its way to the disk before the next step starts."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a number that JSON has no form for becomes null."""
        self._file.write(json_text(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close it."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records; a last line that was cut off is left out.

    Raises:
        RefusedError: another line is no record.
    """
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise RefusedError(
                f"{path}: line {number} is no record of a step or an evaluation: bring it back"
            )
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def cut_back(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Keep the records that a checkpoint knows of, atomically; what is left."""
    records = [record for record in read_metrics(path) if keep(record)] if path.exists() else []
    write_atomically(path, "".join(json_text(record) + "\n" for record in records).encode())
    return records


def incomplete_steps(records: list[dict[str, Any]], steps: int) -> list[int]:
    """Steps without exactly one record whose six fields are finite.

    Null passes only for gpu_util_pct, and only where the step was computed on the CPU.
    """
    found: dict[int, list[bool]] = {step: [] for step in range(steps)}
    for record in records:
        if "train_loss" in record:
            fields = STEP_FIELDS[:-1] if record.get("device") == "cpu" else STEP_FIELDS
            complete = all(isinstance(record.get(name), (int, float)) for name in fields)
            found.setdefault(record["step"], []).append(complete and "gpu_util_pct" in record)
    return [step for step, complete in found.items() if complete != [True]]

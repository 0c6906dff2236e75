"""The fixed set of checks that decide a promise from what a run left on disk.

A contract names them with operands; nothing of a contract is ever evaluated as code.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CUDA_ERRORS = re.compile(
    r"CUDA out of memory|OutOfMemoryError|illegal memory access|misaligned address|"
    r"launch failure|device-side assert|CUDA error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    `passed` is None where the check does not apply; that is never a pass. `measured` and `threshold` are
    what was compared, `artifact` is the file that it was read from, relative to the run directory.
    """

    passed: bool | None
    measured: object
    threshold: object
    artifact: str
    detail: str = ""


class MissingArtifactError(Exception):
    """The run left no such file, or it does not hold what it must. Always a failure of the promise."""

    def __init__(self, artifact: str, problem: str) -> None:
        super().__init__(f"{artifact}: {problem}")
        self.artifact = artifact


class Run:
    """The artifacts of one run directory, read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json."""
        try:
            result = json.loads(self._text("result.json"))
        except (ValueError, RecursionError) as error:
            raise MissingArtifactError("result.json", f"no JSON: {error}") from error
        if not isinstance(result, dict):
            raise MissingArtifactError("result.json", "no JSON object")
        return result

    @cached_property
    def first_step_loss(self) -> float:
        """train_loss of the first step in train.jsonl."""
        for number, line in enumerate(self._text("train.jsonl").splitlines(), 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MissingArtifactError("train.jsonl", f"line {number} is no JSON") from error
            if isinstance(record, dict) and "train_loss" in record:
                return _number(record["train_loss"], "train.jsonl", "train_loss")
        raise MissingArtifactError("train.jsonl", "no step has a train_loss")

    @cached_property
    def log(self) -> str:
        """run.log."""
        return self._text("run.log")

    @cached_property
    def checkpoint(self) -> tuple[str, Path]:
        """The last checkpoint: its name in result.json, and its path."""
        name = self.result.get("last_checkpoint")
        if not isinstance(name, str):
            raise MissingArtifactError("result.json", "names no last_checkpoint")
        path = self.directory / name
        try:
            inside = path.resolve().is_relative_to(self.directory.resolve())
        except (OSError, ValueError) as error:
            raise MissingArtifactError(name, f"no path: {error}") from error
        if not inside:
            raise MissingArtifactError(name, "outside the run directory: not a file of this run")
        if not path.is_file():
            raise MissingArtifactError(name, "no such file")
        return name, path

    @cached_property
    def ln_vocab(self) -> float:
        """ln V: the loss of a model that knows nothing, with V from the checkpoint's own metadata."""
        from apr.container.load import load
        from apr.errors import AprError

        name, path = self.checkpoint
        try:
            with load(path) as file:
                vocab_size = file.metadata.get("vocab_size")
        except AprError as error:
            raise MissingArtifactError(name, str(error)) from error
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 2:
            raise MissingArtifactError(name, f"vocab_size in its metadata is {vocab_size!r}")
        return math.log(vocab_size)

    def number(self, key: str) -> float:
        """A number of result.json; NaN and infinities are numbers here, for the checks to judge."""
        return _number(self.result.get(key), "result.json", key)

    def _text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise MissingArtifactError(name, "no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise MissingArtifactError(name, f"not readable: {error}") from error


@dataclass(frozen=True)
class Check:
    """One check: its operands' names, and how it is decided."""

    operands: tuple[str, ...]
    decide: Callable[..., Outcome]


def exit_code(run: Run, equals: float) -> Outcome:
    """The process ended with this exit code."""
    code = run.number("exit_code")
    measured = int(code) if code.is_integer() else code  # NaN and infinities are no integers
    return Outcome(code == equals, measured, f"= {equals:g}", "result.json")


def wall_seconds(run: Run, at_most: float) -> Outcome:
    """The run took no longer."""
    seconds = run.number("wall_seconds")
    return Outcome(seconds <= at_most, round(seconds, 1), f"<= {at_most:g} s", "result.json")


def step0_train_loss(run: Run, at_most_ln_vocab: float) -> Outcome:
    """The loss of the first step, before any update, is at most this share of ln V: the weights flowed in."""
    loss, logged = run.number("step0_train_loss"), run.first_step_loss
    threshold = at_most_ln_vocab * run.ln_vocab
    if loss != logged:
        detail = f"result.json says {loss}, train.jsonl {logged}"
        return Outcome(False, loss, f"<= {threshold:.3f}", "train.jsonl", detail)
    share = f"{at_most_ln_vocab:g} ln V"
    return Outcome(loss <= threshold, round(loss, 4), f"<= {threshold:.3f} ({share})", "train.jsonl")


def checkpoint_verifies(run: Run) -> Outcome:
    """The last checkpoint is an .apr file: its magic, its structure, and the checksum of every byte."""
    from apr.container.verify import verify

    name, path = run.checkpoint
    with path.open("rb") as file:
        magic = file.read(4)
    report = verify(path)
    footer_checked = all(check.passed is not None for check in report.checks)
    wrong = "; ".join(check.detail for check in report.checks if check.passed is not True)
    passed = magic == b"APR\0" and report.ok and footer_checked
    return Outcome(
        passed, f"{magic!r}, {'verified' if report.ok else 'damaged'}", "b'APR\\x00', verified", name, wrong
    )


def final_val_loss(run: Run, below_ln_vocab: float) -> Outcome:
    """The held-out loss at the end is finite and below this share of ln V."""
    loss, threshold = run.number("final_val_loss"), below_ln_vocab * run.ln_vocab
    passed = math.isfinite(loss) and loss < threshold
    return Outcome(passed, round(loss, 4), f"< {threshold:.3f} ({below_ln_vocab:g} ln V)", "result.json")


def no_cuda_errors(run: Run) -> Outcome:
    """The log has no CUDA out-of-memory, illegal address or launch error."""
    device = run.result.get("device")
    if not isinstance(device, str) or not device:
        raise MissingArtifactError("result.json", "names no device")
    if not device.startswith("cuda"):
        return Outcome(None, "not applicable", "0 errors", "run.log", f"the run was on {device}")
    errors = [line for line in run.log.splitlines() if _CUDA_ERRORS.search(line)]
    return Outcome(not errors, len(errors), "0 errors", "run.log", errors[0] if errors else "")


CHECKS = {
    "exit_code": Check(("equals",), exit_code),
    "wall_seconds": Check(("at_most",), wall_seconds),
    "step0_train_loss": Check(("at_most_ln_vocab",), step0_train_loss),
    "checkpoint_verifies": Check((), checkpoint_verifies),
    "final_val_loss": Check(("below_ln_vocab",), final_val_loss),
    "no_cuda_errors": Check((), no_cuda_errors),
}


def _number(value: object, artifact: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MissingArtifactError(artifact, f"{key} is {value!r}, no number")
    try:
        return float(value)
    except OverflowError:
        raise MissingArtifactError(artifact, f"{key} is beyond every number of 64 bits") from None

"""The checks that decide a promise from the files that a run left in its directory.

A contract names a check and its operands. Nothing in a contract is ever evaluated as code.
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

# What PyTorch and the CUDA driver print when a kernel or an allocation fails.
_CUDA_ERRORS = re.compile(
    r"CUDA out of memory|OutOfMemoryError|illegal memory access|misaligned address|"
    r"launch failure|device-side assert|CUDA error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """The result of a check."""

    passed: bool | None
    """Whether the promise holds. None means that the check does not apply, which never counts as a pass."""
    measured: object
    """The value that the run has."""
    threshold: object
    """The value that it was compared with."""
    artifact: str
    """The file that the value was read from, relative to the run directory."""
    detail: str = ""
    """The reason for a failure, if the values do not say it."""


class MissingArtifactError(Exception):
    """A file of the run is missing or lacks a value that a check needs. The promise then counts as broken."""

    def __init__(self, artifact: str, problem: str) -> None:
        super().__init__(f"{artifact}: {problem}")
        self.artifact = artifact


class Run:
    """The files of a run directory. Each is read on first use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        try:
            result = json.loads(self._text("result.json"))
        except (ValueError, RecursionError) as error:
            raise MissingArtifactError("result.json", f"invalid JSON: {error}") from error
        if not isinstance(result, dict):
            raise MissingArtifactError("result.json", "the JSON is not an object")
        return result

    @cached_property
    def first_step_loss(self) -> float:
        """The train_loss of the first step in train.jsonl."""
        for number, line in enumerate(self._text("train.jsonl").splitlines(), 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MissingArtifactError("train.jsonl", f"line {number} is not valid JSON") from error
            if isinstance(record, dict) and "train_loss" in record:
                return _number(record["train_loss"], "train.jsonl", "train_loss")
        raise MissingArtifactError("train.jsonl", "no line has a train_loss")

    @cached_property
    def log(self) -> str:
        """The text of run.log."""
        return self._text("run.log")

    @cached_property
    def checkpoint(self) -> tuple[str, Path]:
        """The last checkpoint: its name in result.json and its path."""
        name = self.result.get("last_checkpoint")
        if not isinstance(name, str):
            raise MissingArtifactError("result.json", "last_checkpoint is missing or not a string")
        path = self.directory / name
        # A forged result could name any file of the machine, also through a link.
        try:
            inside = path.resolve().is_relative_to(self.directory.resolve())
        except (OSError, ValueError) as error:
            raise MissingArtifactError(name, f"not a valid path: {error}") from error
        if not inside:
            raise MissingArtifactError(name, "outside the run directory")
        if not path.is_file():
            raise MissingArtifactError(name, "no such file")
        return name, path

    @cached_property
    def ln_vocab(self) -> float:
        """ln V, the loss of a uniform guess, with the vocabulary size V from the checkpoint's metadata."""
        from apr.container.load import load
        from apr.errors import AprError

        name, path = self.checkpoint
        try:
            with load(path) as file:
                vocab_size = file.metadata.get("vocab_size")
        except AprError as error:
            raise MissingArtifactError(name, str(error)) from error
        # With a vocabulary of 1, ln V is 0, and so would be every threshold.
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 2:
            raise MissingArtifactError(name, f"vocab_size in the metadata is {vocab_size!r}")
        return math.log(vocab_size)

    def number(self, key: str) -> float:
        """Return a number from result.json. It may be NaN or infinite; the checks decide what that means."""
        return _number(self.result.get(key), "result.json", key)

    def _text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise MissingArtifactError(name, "no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise MissingArtifactError(name, f"cannot be read: {error}") from error


@dataclass(frozen=True)
class Check:
    """A check: the names of its operands, and the function that gets them."""

    operands: tuple[str, ...]
    decide: Callable[..., Outcome]


def exit_code(run: Run, equals: float) -> Outcome:
    """Check that the process ended with this exit code."""
    code = run.number("exit_code")
    measured = int(code) if code.is_integer() else code  # NaN and infinities stay floats
    return Outcome(code == equals, measured, f"= {equals:g}", "result.json")


def wall_seconds(run: Run, at_most: float) -> Outcome:
    """Check that the run took at most this many seconds."""
    seconds = run.number("wall_seconds")
    return Outcome(seconds <= at_most, round(seconds, 1), f"<= {at_most:g} s", "result.json")


def step0_train_loss(run: Run, at_most_ln_vocab: float) -> Outcome:
    """Check that the loss before the first update is at most this share of ln V.

    A run whose pretrained weights were not loaded starts near ln V.
    """
    # The dispatch contract sets 0.7: 8.35 for Qwen's 151,936 ids. The pretrained SmolLM2-135M scores 2.12 on
    # Python source, against 7.56 for its own vocabulary.
    loss, logged = run.number("step0_train_loss"), run.first_step_loss
    threshold = at_most_ln_vocab * run.ln_vocab
    if loss != logged:
        detail = f"result.json has {loss}, but train.jsonl has {logged}"
        return Outcome(False, loss, f"<= {threshold:.3f}", "train.jsonl", detail)
    share = f"{at_most_ln_vocab:g} ln V"
    return Outcome(loss <= threshold, round(loss, 4), f"<= {threshold:.3f} ({share})", "train.jsonl")


def checkpoint_verifies(run: Run) -> Outcome:
    """Check the last checkpoint: the magic, the structure, and the checksum of every byte."""
    from apr.container.verify import verify

    name, path = run.checkpoint
    with path.open("rb") as file:
        magic = file.read(4)
    report = verify(path)
    # A file without a footer verifies with that check undecided. For a checkpoint of our own that is a
    # failure.
    footer_checked = all(check.passed is not None for check in report.checks)
    wrong = "; ".join(check.detail for check in report.checks if check.passed is not True)
    passed = magic == b"APR\0" and report.ok and footer_checked
    return Outcome(
        passed, f"{magic!r}, {'verified' if report.ok else 'damaged'}", "b'APR\\x00', verified", name, wrong
    )


def final_val_loss(run: Run, below_ln_vocab: float) -> Outcome:
    """Check that the final held-out loss is finite and below this share of ln V."""
    loss, threshold = run.number("final_val_loss"), below_ln_vocab * run.ln_vocab
    passed = math.isfinite(loss) and loss < threshold
    return Outcome(passed, round(loss, 4), f"< {threshold:.3f} ({below_ln_vocab:g} ln V)", "result.json")


def no_cuda_errors(run: Run) -> Outcome:
    """Check that the log has no CUDA error: out of memory, illegal address, failed launch."""
    device = run.result.get("device")
    if not isinstance(device, str) or not device:
        raise MissingArtifactError("result.json", "device is missing or not a string")
    # Not a pass: a run on the CPU says nothing about CUDA.
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
    # bool is a subclass of int; true must not pass as 1.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MissingArtifactError(artifact, f"{key} is {value!r}, which is not a number")
    try:
        return float(value)
    except OverflowError:
        raise MissingArtifactError(artifact, f"{key} is too large for a 64-bit float") from None

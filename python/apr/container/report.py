"""The outcome of a verification."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from apr._core import Findings

_MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a file.

    Attributes:
        name: the part of the file that was checked, such as "header" or "footer".
        passed: the outcome; None if the file stores nothing to check against.
        detail: one line that explains the outcome.
        tensor: the tensor at fault, or None.
        offset: the byte at fault, counted from the start of the file, or None.
    """

    name: str
    passed: bool | None
    detail: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        return f"{_MARKS[self.passed]:<6}  {self.name:<12}  {self.detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """The checks of a file, in file order. They end early at damage that keeps the file from opening.

    Attributes:
        path: the file, as it was given.
        opened: whether the file can be opened at all.
        checks: the checks that were made.
    """

    path: str
    opened: bool
    checks: tuple[Check, ...]

    @classmethod
    def from_findings(cls, path: str, findings: Findings) -> Self:
        """Return the report of a file from the results of the compiled module."""
        checks = tuple(
            Check(check.name, check.passed, check.detail, check.tensor, check.offset)
            for check in findings.checks
        )
        return cls(path, findings.opened, checks)

    @property
    def ok(self) -> bool:
        """Whether no check failed. A missing footer is not a failure."""
        # None counts as good: old files have no footer to check against.
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """Return the report as a dictionary that `json.dumps` accepts."""
        return {
            "file": self.path,
            "ok": self.ok,
            "opened": self.opened,
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED" if self.opened else "not a valid file"
        return "\n".join([f"{self.path}: {verdict}", *(f"  {check}" for check in self.checks)])

"""Verification: every check of the format, each with its outcome."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from apr._core import verify_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Unpack

    from apr._core import _Findings
    from apr.container.legacy.keys import Keys

_MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `passed` is None where the file gives nothing to check against."""

    name: str
    passed: bool | None
    detail: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        return f"{_MARKS[self.passed]:<6}  {self.name:<12}  {self.detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """The checks of one file, in file order; they end at a part that keeps the file from opening."""

    path: str
    opened: bool
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed. A missing footer is no failure."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """As JSON would hold it."""
        return {
            "file": self.path,
            "ok": self.ok,
            "opened": self.opened,
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED" if self.opened else "not a valid file"
        return "\n".join([f"{self.path}: {verdict}", *(f"  {check}" for check in self.checks)])


def verify(
    path: str | PathLike[str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    **keys: Unpack[Keys],
) -> Report:
    """Check a file byte for byte, or each file of an index or a directory.

    A file that does not open is reported, not raised. Ctrl-C ends it soon.

    Args:
        path: the file, or the index or directory of a model in several.
        on_progress: called now and then with the bytes read so far and the bytes in all; what it raises ends
            the check.
        keys: as `apr.load` takes them: without one, the payload of an encrypted file is not checked, and a
            signature proves integrity alone.

    Raises:
        OSError: as `open` would.
    """
    path = os.fspath(path)
    if path.endswith(".index.json") or os.path.isdir(path):  # noqa: PTH112 (a Path costs more)
        from apr.container.sharded import verify_several

        return verify_several(path, on_progress, **keys)
    tell = None
    if on_progress is not None:
        total = os.stat(path).st_size  # noqa: PTH116 (a Path costs more)

        def tell(read: int) -> None:
            on_progress(min(read, total), total)

    return report(path, verify_file(path, tell, **keys))


def report(path: str, findings: _Findings) -> Report:
    """The report of what the core found."""
    opened, checks = findings
    return Report(path, opened, tuple(Check(*check) for check in checks))

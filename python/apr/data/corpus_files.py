"""The files of a corpus in a fixed order: the paths as given, sorted below a directory."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from apr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN = "-"
_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_PARQUET = ".parquet"
# A link that leads nowhere, or to itself, is no file.
_NOWHERE = (errno.ENOENT, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One input file; `-` is standard input, of unknown size."""

    path: Path
    format: str
    """text, jsonl or parquet; unreadable for what is known to be so before it is opened."""
    nbytes: int
    mtime_ns: int
    reason: str | None = None
    """Why it is unreadable."""

    def changed(self) -> bool:
        """Whether size or time are no longer those it was found with."""
        if str(self.path) == STDIN or self.reason is not None:
            return False
        try:
            status = self.path.stat()
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns) != (self.nbytes, self.mtime_ns)


def corpus_files(
    root: str, patterns: tuple[str, ...], exclude: tuple[str, ...], without: Path | None
) -> Iterator[CorpusFile]:
    """The files of one root; `without` is a directory that is not entered.

    Raises:
        OSError: the root itself is not there or cannot be read.
        UsageError: it is neither a file nor a directory.
    """
    path = Path(root)
    if root == STDIN:
        yield CorpusFile(path, "jsonl", 0, 0)
    elif path.is_dir():
        os.scandir(path).close()
        left_out = None if without is None else _below(path.resolve(), without.resolve())
        for relative, error in _walk(path, Path(), exclude, left_out):
            file = path / relative
            if error is not None:
                yield CorpusFile(file, "unreadable", 0, 0, f"cannot be listed: {error.strerror}")
            elif not patterns or any(_matches(relative, pattern) for pattern in patterns):
                yield from _listed(file)
    else:
        # Without O_NONBLOCK the opening of a pipe waits for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{path}: neither a file nor a directory: what comes through a pipe is given as -"
            )
        yield _file(path, status)


def _below(root: Path, directory: Path) -> Path | None:
    return directory.relative_to(root) if directory.is_relative_to(root) else None


def _listed(path: Path) -> Iterator[CorpusFile]:
    """A file that was met in a directory; sockets, pipes and links that lead nowhere are none."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in _NOWHERE:
            yield CorpusFile(path, "unreadable", 0, 0, f"cannot be read: {error.strerror}")
        return
    if stat.S_ISREG(status.st_mode):
        yield _file(path, status)


def _file(path: Path, status: os.stat_result) -> CorpusFile:
    name = path.name.lower()
    kind = "jsonl" if name.endswith(_JSONL) else "parquet" if name.endswith(_PARQUET) else "text"
    return CorpusFile(path, kind, status.st_size, status.st_mtime_ns)


def _walk(
    root: Path, below: Path, exclude: tuple[str, ...], left_out: Path | None
) -> Iterator[tuple[Path, OSError | None]]:
    """Paths below a directory relative to it, sorted; folders that are left out are not entered."""
    if below == left_out:
        return
    try:
        with os.scandir(root / below) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        yield below, error
        return
    for name, is_directory in found:
        path = below / name
        if any(_left_out(path, pattern) for pattern in exclude):
            continue
        if is_directory:
            yield from _walk(root, path, exclude, left_out)
        else:
            yield path, None


def _matches(path: Path, pattern: str) -> bool:
    return fnmatchcase(path.as_posix() if "/" in pattern else path.name, pattern)


def _left_out(path: Path, pattern: str) -> bool:
    # With a slash behind it a folder `test` matches `test/*`, and so does all below it.
    return _matches(path, pattern) or ("/" in pattern and fnmatchcase(f"{path.as_posix()}/", pattern))

"""The files of a corpus in a fixed order: the paths as given, sorted below a directory."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN = "-"
# A compressed .json is one of lines, as in C4.
_JSONL = (
    *(".jsonl", ".jsonl.gz", ".jsonl.zst"),
    *(".ndjson", ".ndjson.gz", ".ndjson.zst"),
    *(".json.gz", ".json.zst"),
)
# One that is not may be either, and is looked into.
_JSON = ".json"
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

    def changed(self, *, skipped: bool = False) -> bool:
        """Whether size or time are no longer those it was found with; one that was skipped may be gone."""
        if str(self.path) == STDIN or self.reason is not None:
            return False
        try:
            status = self.path.stat()
        except OSError:
            return not skipped
        return (status.st_size, status.st_mtime_ns) != (self.nbytes, self.mtime_ns)


def corpus_files(
    root: str,
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    without: Path | None,
    content_field: str,
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
        left_out = None if without is None else _below(path.resolve(), without.resolve())
        for relative, entry in _walk(path, "", exclude, left_out):
            if isinstance(entry, OSError):
                if not relative:
                    raise entry
                yield CorpusFile(path / relative, "unreadable", 0, 0, f"cannot be listed: {entry.strerror}")
            elif not patterns or any(_matches(relative, pattern) for pattern in patterns):
                yield from _listed(entry, content_field)
    else:
        # Without O_NONBLOCK the opening of a pipe waits for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{path}: neither a file nor a directory: what comes through a pipe is given as -"
            )
        yield _file(path, status, content_field)


def _below(root: Path, directory: Path) -> str | None:
    return directory.relative_to(root).as_posix() if directory.is_relative_to(root) else None


def _listed(entry: os.DirEntry[str], content_field: str) -> Iterator[CorpusFile]:
    """A file that was met in a directory; sockets, pipes and links that lead nowhere are none."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in _NOWHERE:
            yield CorpusFile(Path(entry.path), "unreadable", 0, 0, f"cannot be read: {error.strerror}")
        return
    if stat.S_ISREG(status.st_mode):
        yield _file(Path(entry.path), status, content_field)


def _file(path: Path, status: os.stat_result, content_field: str) -> CorpusFile:
    name = path.name.lower()
    lines = name.endswith(_JSONL) or (name.endswith(_JSON) and _is_lines(path, content_field))
    kind = "jsonl" if lines else "parquet" if name.endswith(_PARQUET) else "text"
    return CorpusFile(path, kind, status.st_size, status.st_mtime_ns)


def _is_lines(path: Path, content_field: str) -> bool:
    """Whether a .json file holds a JSON object a line: two of them, or one with the field."""
    try:
        with path.open("rb") as file:
            lines = (line for line in file if line.strip())
            first = _object(next(lines, b""))
            return first is not None and (content_field in first or _object(next(lines, b"")) is not None)
    except OSError:
        return False  # which is said where it is read


def _object(line: bytes) -> dict[str, Any] | None:
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _walk(
    root: Path, below: str, exclude: tuple[str, ...], left_out: str | None
) -> Iterator[tuple[str, os.DirEntry[str] | OSError]]:
    """What is below a directory, by its path relative to it, sorted; what is left out is not entered."""
    if (below or ".") == left_out:
        return
    try:
        with os.scandir(root / below) as entries:
            found = sorted((entry.name, entry) for entry in entries)
    except OSError as error:
        yield below, error
        return
    for name, entry in found:
        path = f"{below}/{name}" if below else name
        if any(_left_out(path, pattern) for pattern in exclude):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path, exclude, left_out)
        else:
            yield path, entry


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _left_out(path: str, pattern: str) -> bool:
    # With a slash behind it a folder `test` matches `test/*`, and so does all below it.
    return _matches(path, pattern) or ("/" in pattern and fnmatchcase(f"{path}/", pattern))

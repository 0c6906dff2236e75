"""The files of a corpus in a fixed order: the paths as given, sorted within a directory."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.data.corpus_stream import STDIN, open_stream, without_bom
from apr.data.listing import SHARD_NAME
from apr.data.manifest import MANIFEST
from apr.errors import FormatError, UsageError
from apr.file_format import format_of_start
from apr.recognize import token_file, token_files

if TYPE_CHECKING:
    from collections.abc import Iterator

# A compressed .json contains JSON lines, as in C4, which was once encoded with the JSON around its texts.
_JSONL = (
    *(".jsonl", ".jsonl.gz", ".jsonl.zst"),
    *(".ndjson", ".ndjson.gz", ".ndjson.zst"),
    *(".json.gz", ".json.zst"),
)
# A plain .json may be JSON lines or one document; its first lines decide.
_JSON = ".json"
# Under any of these names a file may be an array of objects; its start decides, with room for line breaks and
# indentation.
_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*\{")
_START_BYTES = 1024
_PARQUET = ".parquet"
# Links that lead nowhere, or to themselves, are not files.
_BROKEN_LINK = (errno.ENOENT, errno.ELOOP)
# Folders of version control whose names do not begin with a dot, as those of others do.
_VERSION_CONTROL = frozenset({"CVS", "_darcs"})


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One input file; `-` is standard input, whose size is unknown."""

    path: Path
    format: str
    """text, jsonl, json (an array of objects) or parquet; unreadable if that is known before it is opened;
    hidden if it is only counted."""
    nbytes: int
    mtime_ns: int
    reason: str | None = None
    """Why it is unreadable."""

    def changed(self, *, skipped: bool = False) -> bool:
        """Whether the size or time changed since the file was listed. A skipped file may be gone."""
        if str(self.path) == STDIN or self.reason is not None:
            return False
        try:
            status = self.path.stat()
        except OSError:
            return not skipped
        # Not by hash: the corpus would have to be read a second time.
        return (status.st_size, status.st_mtime_ns) != (self.nbytes, self.mtime_ns)


def list_corpus_files(
    root: str,
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    without: Path | None,
    content_field: str,
    *,
    hidden: bool,
) -> Iterator[CorpusFile]:
    """Yield the files of one root.

    Args:
        root: a file, a directory, or `-`.
        patterns: globs, one of which a file within a directory must match; none match all.
        exclude: globs for files and folders to leave out.
        without: a directory to leave out.
        content_field: the key that tells JSON lines from a JSON document.
        hidden: whether to list hidden files and folders, and those of version control. Otherwise each is
            yielded with the format `hidden`, and such a folder is not entered.

    Raises:
        OSError: the root does not exist or cannot be read.
        UsageError: the root is neither a file nor a directory, or contains token shards or a model.
    """
    path = Path(root)
    if root != STDIN and (what := _not_text(path)) is not None:
        what, _, remedy = what.partition("; ")
        remedy = remedy or "pass text files or their directory"
        raise UsageError(f"{path}: {what}, not text to encode; {remedy}", path=path)
    if root == STDIN:
        yield CorpusFile(path, "jsonl", 0, 0)
    elif path.is_dir():
        left_out = None
        # Compared after links are resolved: the output may be given by another path.
        if without is not None and without.resolve().is_relative_to(path.resolve()):
            left_out = without.resolve().relative_to(path.resolve()).as_posix()
        for relative, entry in _walk(path, "", exclude, left_out, hidden=hidden):
            if isinstance(entry, OSError):
                if not relative:
                    raise entry
                yield CorpusFile(path / relative, "unreadable", 0, 0, f"cannot be listed: {entry.strerror}")
            elif not hidden and entry.is_dir(follow_symlinks=False):
                yield CorpusFile(path / relative, "hidden", 0, 0)
            elif patterns and not any(_matches(relative, pattern) for pattern in patterns):
                continue
            elif not hidden and _is_hidden(entry.name):
                yield CorpusFile(path / relative, "hidden", 0, 0)
            else:
                yield from _directory_entry(entry, content_field)
    else:
        # Without O_NONBLOCK, opening a pipe would wait until a process writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: neither a file nor a directory; to read from a pipe, use -", path=path)
        yield _file(path, status, content_field)


def _not_text(root: Path) -> str | None:
    """Return what a path of the command line is if it has token ids, or is a model."""
    if tokens := token_files(root):
        return tokens
    if root.is_dir():
        with os.scandir(root) as entries:
            has_shards = any(SHARD_NAME.match(entry.name) for entry in entries)
        return "a directory of token shards" if has_shards else None
    if SHARD_NAME.match(root.name):
        return "a token shard"
    if root.name == MANIFEST and any(SHARD_NAME.match(beside.name) for beside in root.parent.iterdir()):
        return "the manifest of token shards"
    if root.is_file():
        with root.open("rb") as file:
            format_ = format_of_start(file.read(9))
        return None if format_ is None else f"a model file ({format_})"
    return None


def _directory_entry(entry: os.DirEntry[str], content_field: str) -> Iterator[CorpusFile]:
    """Yield a file within a directory; nothing for sockets, pipes and broken links."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in _BROKEN_LINK:
            yield CorpusFile(Path(entry.path), "unreadable", 0, 0, f"cannot be read: {error.strerror}")
        return
    if stat.S_ISREG(status.st_mode):
        yield _file(Path(entry.path), status, content_field)


def _file(path: Path, status: os.stat_result, content_field: str) -> CorpusFile:
    name = path.name.lower()
    tokens = "a token shard" if SHARD_NAME.match(path.name) else token_file(str(path))
    if tokens:
        return CorpusFile(path, "unreadable", status.st_size, status.st_mtime_ns, f"{tokens}, not text")
    if name.endswith((*_JSONL, _JSON)) and _has_json_array(path):
        format_ = "json"
    elif name.endswith(_JSONL) or (name.endswith(_JSON) and _has_json_lines(path, content_field)):
        format_ = "jsonl"
    elif name.endswith(_PARQUET):
        format_ = "parquet"
    else:
        format_ = "text"
    return CorpusFile(path, format_, status.st_size, status.st_mtime_ns)


def _has_json_array(path: Path) -> bool:
    """Whether a file begins as an array of objects does."""
    try:
        with open_stream(path) as (stream, _):
            return _ARRAY_OF_OBJECTS.match(without_bom(stream.read(_START_BYTES))) is not None
    except (OSError, FormatError):
        return False  # reported when the file is read


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _VERSION_CONTROL


def _has_json_lines(path: Path, content_field: str) -> bool:
    """Whether a .json file has an object per line: the first has the field, or the first two are objects."""
    try:
        with path.open("rb") as file:
            lines = (line for line in file if line.strip())
            first = _json_object(next(lines, b""))
            if first is None:
                return False
            return content_field in first or _json_object(next(lines, b"")) is not None
    except OSError:
        return False  # reported when the file is read


def _json_object(line: bytes) -> dict[str, Any] | None:
    line = without_bom(line).strip()
    # A quick test first: a JSON document may be a single line of gigabytes.
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _walk(
    root: Path, below: str, exclude: tuple[str, ...], left_out: str | None, *, hidden: bool
) -> Iterator[tuple[str, os.DirEntry[str] | OSError]]:
    """Yield the entries below a directory, sorted, with their paths relative to the root.

    Folders that are left out are not entered. Links to folders are not followed. Unless `hidden`, a hidden
    folder is yielded instead of what it contains.
    """
    if left_out == ".":
        return
    try:
        with os.scandir(root / below) as scanned:
            # The file system returns entries in any order, but the same corpus must give the same shards.
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        yield below, error
        return
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if path == left_out or any(_is_excluded(path, pattern) for pattern in exclude):
            continue
        # A link to a folder above this one would be followed forever.
        if entry.is_dir(follow_symlinks=False) and (hidden or not _is_hidden(entry.name)):
            yield from _walk(root, path, exclude, left_out, hidden=hidden)
        else:
            yield path, entry


def _matches(path: str, pattern: str) -> bool:
    # On strings, because a corpus may have a million files: no Path object for each of them and each pattern.
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _is_excluded(path: str, pattern: str) -> bool:
    # With a slash appended, the folder `test` matches `test/*`, and is not entered.
    return _matches(path, pattern) or ("/" in pattern and fnmatchcase(f"{path}/", pattern))

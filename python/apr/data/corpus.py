"""Documents of a corpus in a fixed order: text files, directories, JSONL, parquet, standard input."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from apr.errors import FormatError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STDIN = "-"
_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_PARQUET = ".parquet"
_PARQUET_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """One text: a file, a line of a JSONL file, a row of a parquet file."""

    name: str
    """The file, with the line or row (from 1) where there is one."""
    text: str
    done: float
    """The share of its file that has been read after it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Documents that are none: no UTF-8, no JSON object, or without the field."""

    name: str
    reason: str
    done: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One input file; `-` is standard input, of unknown size."""

    path: Path
    format: str
    """text, jsonl or parquet."""
    nbytes: int
    mtime_ns: int


class Corpus:
    """The documents of some paths, in the order of the paths and sorted below a directory.

    Args:
        roots: files and directories; `-` is JSONL on standard input.
        patterns: globs that a file below a directory has to match one of; without a `/` they are held
            against the file's name, else against its path below the root.
        exclude: globs that leave out files below a directory; without a `/` they are held against every
            part of the path, and `*` matches any depth: `test/*` is all below the root's folder `test`.
        content_field: the key or column that holds the text in JSONL and parquet.
        without: a directory that is left out: the output, where it lies inside the corpus.

    Raises:
        FileNotFoundError: no such path.
        RefusedError: no file matches.
    """

    def __init__(
        self,
        roots: Sequence[str],
        *,
        patterns: Sequence[str] = (),
        exclude: Sequence[str] = (),
        content_field: str = "content",
        without: Path | None = None,
    ) -> None:
        self.roots = list(roots)
        self.content_field = content_field
        self.files = [
            file for root in roots for file in _files(root, tuple(patterns), tuple(exclude), without)
        ]
        if not self.files:
            raise RefusedError(
                f"{', '.join(self.roots)}: no file to read"
                + (f" matches {', '.join(patterns)}: widen --pattern" if patterns else "")
            )

    @property
    def nbytes(self) -> int | None:
        """Bytes of all files as stored; None if standard input is one."""
        return None if any(str(f.path) == STDIN for f in self.files) else sum(f.nbytes for f in self.files)

    @property
    def format(self) -> str:
        """text, jsonl, parquet or mixed."""
        formats = {file.format for file in self.files}
        return formats.pop() if len(formats) == 1 else "mixed"

    def fingerprint(self) -> str:
        """SHA-256 over each file's path, size and time: whether this is still the same corpus."""
        rows = [(os.fsdecode(f.path), f.nbytes, f.mtime_ns) for f in self.files]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def items(self) -> Iterator[tuple[int, Document | Skipped]]:
        """All documents in order, each with the bytes of the files, as stored, that are read after it.

        Raises:
            FormatError, OSError: as `read`.
        """
        before = 0
        for file in self.files:
            for item in self.read(file):
                yield before + int(item.done * file.nbytes), item
            before += file.nbytes

    def read(self, file: CorpusFile) -> Iterator[Document | Skipped]:
        """The documents of one of `files`.

        Raises:
            FormatError: a compressed or parquet file is damaged.
            OSError: it cannot be read.
        """
        if file.format == "text":
            yield _document(str(file.path), file.path.read_bytes(), 1.0)
        elif file.format == "parquet":
            yield from _parquet(file, self.content_field)
        else:
            yield from _jsonl(file, self.content_field)


def _files(
    root: str, patterns: tuple[str, ...], exclude: tuple[str, ...], without: Path | None
) -> Iterator[CorpusFile]:
    path = Path(root)
    if root == STDIN:
        yield CorpusFile(path, "jsonl", 0, 0)
    elif path.is_dir():
        left_out = None if without is None else without.resolve()
        for relative in _walk(path, Path(), exclude):
            file = path / relative
            if patterns and not any(_matches(relative, pattern) for pattern in patterns):
                continue
            # Sockets and pipes are no documents; a dangling link is none either.
            if file.is_file() and (left_out is None or left_out not in file.resolve().parents):
                yield _file(file)
    else:
        yield _file(path)


def _file(path: Path) -> CorpusFile:
    status = path.stat()
    name = path.name.lower()
    kind = "jsonl" if name.endswith(_JSONL) else "parquet" if name.endswith(_PARQUET) else "text"
    return CorpusFile(path, kind, status.st_size, status.st_mtime_ns)


def _walk(root: Path, below: Path, exclude: tuple[str, ...]) -> Iterator[Path]:
    """Paths below a directory relative to it, sorted; folders that are left out are not entered."""
    with os.scandir(root / below) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_directory in found:
        path = below / name
        if any(_left_out(path, pattern) for pattern in exclude):
            continue
        if is_directory:
            yield from _walk(root, path, exclude)
        else:
            yield path


def _matches(path: Path, pattern: str) -> bool:
    return fnmatchcase(path.as_posix() if "/" in pattern else path.name, pattern)


def _left_out(path: Path, pattern: str) -> bool:
    # With a slash behind it a folder `test` matches `test/*`, and so does all below it.
    return _matches(path, pattern) or ("/" in pattern and fnmatchcase(f"{path.as_posix()}/", pattern))


def _document(name: str, content: bytes, done: float) -> Document | Skipped:
    try:
        return Document(name, content.decode(), done)
    except UnicodeDecodeError as error:
        return Skipped(name, f"no UTF-8 at byte {error.start}", done)


def _jsonl(file: CorpusFile, field: str) -> Iterator[Document | Skipped]:
    if str(file.path) == STDIN:
        yield from _lines(STDIN, sys.stdin.buffer, field, lambda _: 0.0)
        return
    size = max(1, file.nbytes)
    name = str(file.path)
    with file.path.open("rb") as raw:
        try:
            if name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield from _lines(name, stream, field, lambda _: raw.tell() / size)
            elif name.lower().endswith(".zst"):
                with _zstd(raw) as stream:
                    yield from _lines(name, stream, field, lambda _: raw.tell() / size)
            else:
                yield from _lines(name, raw, field, lambda consumed: consumed / size)
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FormatError(f"{name}: damaged: {error}", path=name) from None


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))


def _lines(name: str, stream: Any, field: str, done: Any) -> Iterator[Document | Skipped]:  # noqa: ANN401
    consumed = 0
    for number, line in enumerate(stream, start=1):
        consumed += len(line)
        if line.strip():
            yield _line(f"{name}:{number}", line, field, min(1.0, done(consumed)))


def _line(name: str, line: bytes, field: str, done: float) -> Document | Skipped:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Skipped(name, f"no UTF-8 at byte {error.start}", done)
    except (ValueError, RecursionError) as error:
        return Skipped(name, f"no JSON: {error}", done)
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return Skipped(name, f"no text under {field!r}", done)
    return _document(name, text.encode(errors="surrogatepass"), done)


def _parquet(file: CorpusFile, field: str) -> Iterator[Document | Skipped]:
    import pyarrow as pa
    from pyarrow import parquet

    name = str(file.path)
    try:
        with parquet.ParquetFile(file.path) as table:
            rows = max(1, table.metadata.num_rows)
            type_ = table.schema_arrow.field(field).type if field in table.schema_arrow.names else None
            if type_ is None or not _is_text(type_):
                yield Skipped(name, f"no column of texts {field!r}", 1.0, table.metadata.num_rows)
                return
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                # As bytes: a column of texts may hold what is no UTF-8.
                for value in _as_bytes(batch.column(0)):
                    number += 1
                    where = f"{name}:{number}"
                    if value is None:
                        yield Skipped(where, f"no text under {field!r}", number / rows)
                    else:
                        yield _document(where, value, number / rows)
    except pa.ArrowInvalid as error:
        raise FormatError(f"{name}: no readable parquet file: {error}", path=name) from None


def _as_bytes(column: Any) -> list[bytes | None]:  # noqa: ANN401  (pyarrow has no types)
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _is_text(type_: Any) -> bool:  # noqa: ANN401  (pyarrow has no types)
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(kind(type_) for kind in kinds)

"""Documents of a corpus in a fixed order: text files, directories, JSONL, parquet, standard input.

They come in batches as they are stored: paths, lines, values. Rust makes ids of those; here a text is made of
one only where it is looked at.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from apr.data.corpus_files import STDIN, CorpusFile, corpus_files
from apr.errors import FormatError, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# Stored bytes and documents of a batch: enough to keep every core busy, and progress is still seen.
_BATCH_BYTES = 4 << 20
_BATCH_DOCUMENTS = 4096
_PARQUET_ROWS = 1024
# Bytes that are passed over at a time.
_PASSED_OVER = 1 << 20
# UTF-8 has at most as many bytes a character.
_UTF8 = 4


@dataclass(frozen=True, slots=True)
class Document:
    """One text: a file, a line of a JSONL file, a row of a parquet file."""

    name: str
    """The file, with the line or row (from 1) where there is one."""
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Documents that are none: unreadable, no UTF-8, no JSON object, or without the field."""

    name: str
    reason: str
    count: int = 1


class Place(NamedTuple):
    """Where the next document begins."""

    file: int = 0
    """Files before it."""
    number: int = 0
    """Lines or rows of its file before it."""
    offset: int = 0
    """Bytes of its file before it, decompressed; 0 for rows."""


START = Place()


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents one after another, as they are stored."""

    format: str
    """text: paths; jsonl: lines; parquet: values as bytes or None; skipped: Skipped."""
    stored: list[Any]
    first: Place
    read: int
    """Bytes of the corpus files, as stored, that are read with it."""

    def after(self, count: int) -> Place:
        """Where the document after the first `count` begins."""
        file, number, offset = self.first
        if self.format == "text":
            return Place(file + count)
        if self.format == "skipped":
            return Place(file + 1)
        length = sum(map(len, self.stored[:count])) if self.format == "jsonl" else 0
        return Place(file, number + count, offset + length)


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
        OSError: a path is not there or cannot be read.
        UsageError: a path is neither a file nor a directory; standard input is named twice.
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
        if self.roots.count(STDIN) > 1:
            raise UsageError("standard input (-) is named twice, and can be read once")
        self.content_field = content_field
        self.files = [
            file
            for root in roots
            for file in corpus_files(root, tuple(patterns), tuple(exclude), without, content_field)
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
        formats = {file.format for file in self.files if file.reason is None}
        return formats.pop() if len(formats) == 1 else "mixed"

    def fingerprint(self) -> str:
        """SHA-256 over each file's path, size and time: whether this is still the same corpus."""
        rows = [(os.fsdecode(f.path), f.nbytes, f.mtime_ns) for f in self.files]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def batches(self, start: Place = START) -> Iterator[Batch]:
        """All documents from a place on, what lies before it passed over as far as its format allows.

        Raises:
            FormatError: a compressed or parquet file is damaged.
            RefusedError: a JSONL file ends before the place.
            OSError: reading failed in the middle of a file; one that cannot be opened is skipped.
        """
        read = sum(file.nbytes for file in self.files[: start.file])
        texts: list[Path] = []
        waiting = 0
        for index, file in enumerate(self.files[start.file :], start.file):
            if file.format == "text":
                texts.append(file.path)
                waiting += file.nbytes
                read += file.nbytes
                if waiting < _BATCH_BYTES and len(texts) < _BATCH_DOCUMENTS:
                    continue
            if texts:
                end = index + (file.format == "text")
                yield Batch("text", texts, Place(end - len(texts)), read)
                texts, waiting = [], 0
            if file.format != "text":
                first = start if index == start.file else Place(index)
                yield from self._batches_of(file, first, read, _BATCH_BYTES)
                read += file.nbytes
        if texts:
            yield Batch("text", texts, Place(len(self.files) - len(texts)), read)

    def look(self, batch: Batch, n: int) -> Document | Skipped | None:
        """The n-th of a batch as a text, or why it is none; None for a blank line."""
        stored = batch.stored[n]
        if batch.format == "skipped":
            return stored  # type: ignore[no-any-return]
        if batch.format == "text":
            try:
                return _document(str(stored), stored.read_bytes())
            except OSError as error:
                return Skipped(str(stored), f"cannot be read: {error.strerror}")
        name = f"{self.files[batch.first.file].path}:{batch.first.number + n + 1}"
        if batch.format == "jsonl":
            return _line(name, stored, self.content_field) if stored.strip() else None
        if stored is None:
            return Skipped(name, f"no text under {self.content_field!r}")
        return _document(name, stored)

    def items(self) -> Iterator[tuple[int, Document | Skipped]]:
        """All documents, each with the bytes of the files, as stored, that are read with its batch.

        Raises:
            FormatError, OSError: as `batches`.
        """
        for batch in self.batches():
            yield from ((batch.read, item) for item in self.looks(batch))

    def looks(self, batch: Batch) -> Iterator[Document | Skipped]:
        """All of a batch, looked at."""
        found = (self.look(batch, n) for n in range(len(batch.stored)))
        return (item for item in found if item is not None)

    def head(self, index: int, characters: int) -> tuple[list[Document], float]:
        """The first documents of a file, about so many characters, and their share of the file.

        Raises:
            FormatError, OSError: as `batches`.
        """
        file = self.files[index]
        if file.format == "text":
            return _start(file, characters)
        found: list[Document] = []
        for batch in self._batches_of(file, Place(index), 0, characters):
            share = batch.read / max(1, file.nbytes)
            for n, item in enumerate(self.looks(batch), start=1):
                if isinstance(item, Document):
                    cut = min(1.0, characters / max(1, len(item.text))) if not found else 1.0
                    found.append(Document(item.name, item.text[:characters]))
                    if sum(len(document.text) for document in found) >= characters:
                        return found, share * n / len(batch.stored) * cut
        return found, 1.0

    def _batches_of(self, file: CorpusFile, first: Place, before: int, nbytes: int) -> Iterator[Batch]:
        """The documents of a JSONL or parquet file from a place on, about so many bytes at a time."""
        reason = file.reason
        if reason is None and str(file.path) != STDIN:
            try:
                file.path.open("rb").close()
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
        if reason is not None:
            yield Batch("skipped", [Skipped(str(file.path), reason)], first, before + file.nbytes)
        elif file.format == "parquet":
            yield from _parquet(file, self.content_field, first, before, nbytes)
        else:
            yield from _jsonl(file, first, before, nbytes)


def _document(name: str, content: bytes) -> Document | Skipped:
    try:
        return Document(name, content.decode())
    except UnicodeDecodeError as error:
        return Skipped(name, f"no UTF-8 at byte {error.start}")


def _start(file: CorpusFile, characters: int) -> tuple[list[Document], float]:
    try:
        with file.path.open("rb") as stream:
            content = stream.read(_UTF8 * characters)
            text = codecs.getincrementaldecoder("utf-8")().decode(content)[:characters]
    except (OSError, UnicodeDecodeError):
        return [], 1.0
    return [Document(str(file.path), text)], len(text.encode()) / max(1, file.nbytes)


def _jsonl(file: CorpusFile, first: Place, before: int, nbytes: int) -> Iterator[Batch]:
    lines: list[bytes] = []
    size = 0
    with _opened(file, first.offset) as (stream, told):
        for line in stream:
            lines.append(line)
            size += len(line)
            if size >= nbytes or len(lines) >= _BATCH_DOCUMENTS:
                made = Batch("jsonl", lines, first, before + min(told(), file.nbytes))
                yield made
                first, lines, size = made.after(len(lines)), [], 0
    if lines:
        yield Batch("jsonl", lines, first, before + file.nbytes)


@contextmanager
def _opened(file: CorpusFile, offset: int) -> Iterator[tuple[BinaryIO | gzip.GzipFile, Callable[[], int]]]:
    """The lines of a JSONL file from an offset of its contents on, and how many stored bytes are read."""
    if str(file.path) == STDIN:
        _pass_over(sys.stdin.buffer, offset, "standard input")
        yield sys.stdin.buffer, lambda: 0
        return
    name = str(file.path)
    with file.path.open("rb") as raw:
        try:
            if name.lower().endswith((".gz", ".zst")):
                unpacked = gzip.GzipFile(fileobj=raw) if name.lower().endswith(".gz") else _zstd(raw)
                with unpacked as stream:
                    _pass_over(stream, offset, name)
                    yield stream, raw.tell
            else:
                if offset > (nbytes := os.fstat(raw.fileno()).st_size):
                    raise _too_short(name, nbytes, offset)
                raw.seek(offset)
                yield raw, raw.tell
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FormatError(f"{name}: damaged: {error}", path=name) from None


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))


def _pass_over(stream: Any, nbytes: int, name: str) -> None:  # noqa: ANN401
    left = nbytes
    while left > 0:
        passed = len(stream.read(min(left, _PASSED_OVER)))
        if not passed:
            raise _too_short(name, nbytes - left, nbytes)
        left -= passed


def _too_short(name: str, nbytes: int, offset: int) -> RefusedError:
    return RefusedError(
        f"{name}: ends after {nbytes:,} bytes, before byte {offset:,} where the encoding was cut off: "
        "--force encodes all anew"
    )


def _line(name: str, line: bytes, field: str) -> Document | Skipped:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Skipped(name, f"no UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Skipped(name, f"no JSON: {error}")
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return Skipped(name, f"no text under {field!r}")
    return _document(name, text.encode(errors="surrogatepass"))


def _parquet(file: CorpusFile, field: str, first: Place, before: int, nbytes: int) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import parquet

    name = str(file.path)
    try:
        with parquet.ParquetFile(file.path) as table:
            rows = table.metadata.num_rows
            type_ = table.schema_arrow.field(field).type if field in table.schema_arrow.names else None
            if type_ is None or not _is_text(type_):
                skipped = Skipped(name, f"no column of texts {field!r}", rows)
                yield Batch("skipped", [skipped], first, before + file.nbytes)
                return
            values: list[bytes | None] = []
            size = 0
            for value in _values(table, field, first.number):
                values.append(value)
                size += len(value or b"")
                if size >= nbytes or len(values) >= _BATCH_DOCUMENTS:
                    share = (first.number + len(values)) / max(1, rows)
                    made = Batch("parquet", values, first, before + int(share * file.nbytes))
                    yield made
                    first, values, size = made.after(len(values)), [], 0
            if values:
                yield Batch("parquet", values, first, before + file.nbytes)
    except (pa.ArrowException, OSError) as error:
        # What Arrow makes of damaged bytes is often an OSError, without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"{name}: no readable parquet file: {error}", path=name) from None


def _values(table: Any, field: str, skipped: int) -> Iterator[bytes | None]:  # noqa: ANN401  (pyarrow)
    """The values of a column from a row on; row groups before it are not read."""
    groups = list(range(table.num_row_groups))
    while groups and skipped >= (rows := table.metadata.row_group(groups[0]).num_rows):
        skipped -= rows
        del groups[0]
    for batch in table.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups, columns=[field]):
        passed = min(skipped, batch.num_rows)
        skipped -= passed
        # As bytes: a column of texts may hold what is no UTF-8.
        yield from _as_bytes(batch.column(0).slice(passed))


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

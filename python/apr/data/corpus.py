"""Documents of a corpus in a fixed order: text files, directories, JSON lines, Parquet, standard input.

Documents come in batches as they are stored: paths, lines, values. Rust turns those into ids directly. A
document becomes a Python string only where one is needed: in samples, and if Rust rejects it.
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
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from apr.data.corpus_files import STDIN, CorpusFile, list_corpus_files
from apr.errors import FormatError, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# Stored bytes and documents of a batch: enough to keep every core busy, and few enough to show progress.
BATCH_BYTES = 4 << 20
_BATCH_DOCUMENTS = 4096
# Rows that are decoded at a time; pyarrow's own 65,536 would hold many large documents in memory.
_PARQUET_ROWS = 1024
# Bytes that are skipped at a time in a stream that cannot seek.
_SKIP_BYTES = 1 << 20
# UTF-8 has at most this many bytes per character.
_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Document:
    """One text: a file, a line of a JSON lines file, a row of a Parquet file."""

    name: str
    """The file, with the line or row (from 1) if it has several documents."""
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Documents that are not valid: unreadable, not UTF-8, not a JSON object, or without the field."""

    name: str
    reason: str
    count: int = 1


class Place(NamedTuple):
    """Where the next document begins."""

    file: int = 0
    """Files before it."""
    number: int = 0
    """Lines or rows of its file before it; within a part that begins inside of a file, lines of the part."""
    offset: int = 0
    """Bytes of its file before it, after decompression; 0 for rows."""


START = Place()


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents as they are stored."""

    format: str
    """text (paths), jsonl (lines), parquet (values as bytes or None) or skipped (Skipped)."""
    stored: list[Any]
    first: Place
    read: int
    """Bytes of the corpus files, as stored, that have been read after this batch."""

    def after(self, count: int) -> Place:
        """Return where the document after the first `count` begins."""
        file, number, offset = self.first
        if self.format == "text":
            return Place(file + count)
        if self.format == "skipped":
            return Place(file + 1)
        length = sum(map(len, self.stored[:count])) if self.format == "jsonl" else 0
        return Place(file, number + count, offset + length)

    def before(self, stop: Place) -> int:
        """Return how many of the documents begin before a place."""
        if self.format == "text":
            return min(len(self.stored), max(0, stop.file - self.first.file))
        if self.first.file != stop.file:
            return len(self.stored) if self.first.file < stop.file else 0
        if self.format == "jsonl":
            starts = accumulate(map(len, self.stored), initial=self.first.offset)
            return sum(1 for _, at in zip(self.stored, starts, strict=False) if at < stop.offset)
        rows = 1 if self.format == "skipped" else len(self.stored)
        return min(rows, max(0, stop.number - self.first.number))


class Corpus:
    """The documents of some paths, in the order of the paths, and sorted within a directory.

    Args:
        roots: files and directories; `-` is JSON lines on standard input.
        patterns: globs, one of which a file within a directory must match. A glob without `/` is matched with
            the file's name, otherwise with its path below the root.
        exclude: globs for files and folders within a directory to leave out. A glob without `/` is matched
            with every part of the path. `*` also matches `/`: `test/*` is everything in the root's folder
            `test`.
        content_field: the key or column that contains the text in JSON lines and Parquet.
        without: a directory to leave out: the output, which may be within the corpus.
        batch_bytes: stored bytes of a batch; None is `BATCH_BYTES`.

    Raises:
        OSError: a path does not exist or cannot be read.
        UsageError: a path is neither a file nor a directory; standard input is given twice.
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
        batch_bytes: int | None = None,
    ) -> None:
        self.roots = list(roots)
        if self.roots.count(STDIN) > 1:
            raise UsageError("standard input (-) is given twice, but can be read only once")
        self.content_field = content_field
        self.lines_from = START
        """Where lines are counted from in the names of documents: the start of a part inside of a file."""
        self._batch_bytes = BATCH_BYTES if batch_bytes is None else batch_bytes
        self.files = [
            file
            for root in roots
            for file in list_corpus_files(root, tuple(patterns), tuple(exclude), without, content_field)
        ]
        if not self.files:
            reason = "no files"
            if patterns:
                reason = f"no file matches {', '.join(patterns)}; use another --pattern"
            raise RefusedError(f"{', '.join(self.roots)}: {reason}")

    @property
    def nbytes(self) -> int | None:
        """Bytes of all files as stored; None if standard input is one of them."""
        if any(str(file.path) == STDIN for file in self.files):
            return None
        return sum(file.nbytes for file in self.files)

    @property
    def format(self) -> str:
        """text, jsonl, parquet or mixed."""
        formats = {file.format for file in self.files if file.reason is None}
        return formats.pop() if len(formats) == 1 else "mixed"

    def fingerprint(self) -> str:
        """Return a SHA-256 over the path, size and time of every file; it changes if a file does."""
        rows = [(os.fsdecode(file.path), file.nbytes, file.mtime_ns) for file in self.files]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def batches(self, start: Place = START, stop: Place | None = None) -> Iterator[Batch]:
        """Yield all documents from a place on. What is before it is skipped without parsing if possible.

        Args:
            start: where the first document begins.
            stop: where the first document begins that is not yielded; None is the end.

        Raises:
            FormatError: a compressed or Parquet file is damaged.
            RefusedError: a JSON lines file ends before the place.
            OSError: reading failed within a file. A file that cannot be opened is skipped.
        """
        for batch in self._batches(start):
            count = len(batch.stored) if stop is None else batch.before(stop)
            if count:
                yield batch if count == len(batch.stored) else replace(batch, stored=batch.stored[:count])
            if count < len(batch.stored):
                return

    def _batches(self, start: Place) -> Iterator[Batch]:
        """Yield all documents from a place on."""
        read = sum(file.nbytes for file in self.files[: start.file])
        texts: list[Path] = []
        texts_bytes = 0
        for index, file in enumerate(self.files[start.file :], start.file):
            if file.format == "text":
                texts.append(file.path)
                texts_bytes += file.nbytes
                read += file.nbytes
                # Small files share a batch; other formats have batches of their own, so texts before them go
                # first.
                if texts_bytes < self._batch_bytes and len(texts) < _BATCH_DOCUMENTS:
                    continue
            if texts:
                end = index + 1 if file.format == "text" else index
                yield Batch("text", texts, Place(end - len(texts)), read)
                texts, texts_bytes = [], 0
            if file.format != "text":
                first = start if index == start.file else Place(index)
                yield from self._batches_of(file, first, read, self._batch_bytes)
                read += file.nbytes
        if texts:
            yield Batch("text", texts, Place(len(self.files) - len(texts)), read)

    def read(self, batch: Batch, n: int) -> Document | Skipped | None:
        """Return the n-th document of a batch, or why it is skipped; None for a blank line."""
        stored = batch.stored[n]
        if batch.format == "skipped":
            return stored  # type: ignore[no-any-return]
        if batch.format == "text":
            try:
                return _document(str(stored), stored.read_bytes())
            except OSError as error:
                return Skipped(str(stored), f"cannot be read: {error.strerror}")
        name = f"{self.files[batch.first.file].path}:{batch.first.number + n + 1}"
        if self.lines_from.offset and batch.first.file == self.lines_from.file:
            name += f" (counted from byte {self.lines_from.offset})"
        if batch.format == "jsonl":
            return _line(name, stored, self.content_field) if stored.strip() else None
        if stored is None:
            return Skipped(name, f"{self.content_field!r} is missing or not a string")
        return _document(name, stored)

    def read_all(self, batch: Batch) -> Iterator[Document | Skipped]:
        """Yield the documents of a batch, and why others are skipped."""
        for n in range(len(batch.stored)):
            item = self.read(batch, n)
            if item is not None:
                yield item

    def items(self) -> Iterator[tuple[int, Document | Skipped]]:
        """Yield all documents, each with the bytes of the files, as stored, that are read after its batch.

        Raises:
            FormatError: a compressed or Parquet file is damaged.
            OSError: reading failed within a file.
        """
        for batch in self.batches():
            for item in self.read_all(batch):
                yield batch.read, item

    def head(self, index: int, characters: int) -> tuple[list[Document], float]:
        """Return the first documents of a file, about so many characters, and their share of the file.

        Raises:
            FormatError: a compressed or Parquet file is damaged.
            OSError: reading failed within the file.
        """
        file = self.files[index]
        if file.format == "text":
            return _text_head(file, characters)
        documents: list[Document] = []
        for batch in self._batches_of(file, Place(index), 0, characters):
            share = batch.read / max(1, file.nbytes)
            for n, item in enumerate(self.read_all(batch), start=1):
                if isinstance(item, Document):
                    # The first document may be longer than the head.
                    cut = 1.0 if documents else min(1.0, characters / max(1, len(item.text)))
                    documents.append(Document(item.name, item.text[:characters]))
                    if sum(len(document.text) for document in documents) >= characters:
                        return documents, share * n / len(batch.stored) * cut
        return documents, 1.0

    def _batches_of(self, file: CorpusFile, first: Place, read_before: int, nbytes: int) -> Iterator[Batch]:
        """Yield the documents of a JSON lines or Parquet file from a place on, about `nbytes` at a time."""
        reason = file.reason
        if reason is None and str(file.path) != STDIN:
            try:
                # A file that cannot be opened is skipped and counted. An error within one ends the command
                # instead, because nobody knows how many documents are lost.
                file.path.open("rb").close()
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
        if reason is not None:
            yield Batch("skipped", [Skipped(str(file.path), reason)], first, read_before + file.nbytes)
        elif file.format == "parquet":
            yield from _parquet_batches(file, self.content_field, first, read_before, nbytes)
        else:
            yield from _jsonl_batches(file, first, read_before, nbytes)


def _document(name: str, content: bytes) -> Document | Skipped:
    try:
        return Document(name, content.decode())
    except UnicodeDecodeError as error:
        return Skipped(name, f"invalid UTF-8 at byte {error.start}")


def _text_head(file: CorpusFile, characters: int) -> tuple[list[Document], float]:
    try:
        with file.path.open("rb") as stream:
            content = stream.read(_MAX_CHARACTER_BYTES * characters)
            # An incremental decoder accepts that the last character is cut.
            text = codecs.getincrementaldecoder("utf-8")().decode(content)[:characters]
    except (OSError, UnicodeDecodeError):
        return [], 1.0
    return [Document(str(file.path), text)], len(text.encode()) / max(1, file.nbytes)


def _jsonl_batches(file: CorpusFile, first: Place, read_before: int, nbytes: int) -> Iterator[Batch]:
    lines: list[bytes] = []
    size = 0
    with _open_lines(file, first.offset) as (stream, tell):
        for line in stream:
            lines.append(line)
            size += len(line)
            if size >= nbytes or len(lines) >= _BATCH_DOCUMENTS:
                # At most the listed size, because a file may grow while it is read.
                batch = Batch("jsonl", lines, first, read_before + min(tell(), file.nbytes))
                yield batch
                first, lines, size = batch.after(len(lines)), [], 0
    if lines:
        yield Batch("jsonl", lines, first, read_before + file.nbytes)


@contextmanager
def _open_lines(
    file: CorpusFile, offset: int
) -> Iterator[tuple[BinaryIO | gzip.GzipFile, Callable[[], int]]]:
    """Open a JSON lines file at an offset of its contents; also gives a function that returns bytes read."""
    if str(file.path) == STDIN:
        _skip(sys.stdin.buffer, offset, "standard input")
        # The size of standard input is unknown, so progress in it cannot be shown.
        yield sys.stdin.buffer, lambda: 0
        return
    name = str(file.path)
    with file.path.open("rb") as raw:
        try:
            if name.lower().endswith((".gz", ".zst")):
                if name.lower().endswith(".gz"):
                    unpacked: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw)
                else:
                    import pyarrow as pa

                    # Arrow's stream has no lines; the buffer around it splits them.
                    unpacked = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))
                with unpacked as stream:
                    # The offset counts decompressed bytes, so all that is before it has to be decompressed
                    # again.
                    _skip(stream, offset, name)
                    yield stream, raw.tell
            else:
                nbytes = os.fstat(raw.fileno()).st_size
                # Seeking beyond the end succeeds, and the rest of the corpus would be lost without a word.
                if offset > nbytes:
                    raise _too_short(name, nbytes, offset)
                raw.seek(offset)
                yield raw, raw.tell
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            # gzip and Arrow report damaged data as an OSError without a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FormatError(f"{name}: damaged file: {error}", path=name) from None


def _skip(stream: Any, nbytes: int, name: str) -> None:  # noqa: ANN401 (gzip, pyarrow and io share no type)
    left = nbytes
    while left > 0:
        skipped = len(stream.read(min(left, _SKIP_BYTES)))
        if not skipped:
            raise _too_short(name, nbytes - left, nbytes)
        left -= skipped


def _too_short(name: str, nbytes: int, offset: int) -> RefusedError:
    return RefusedError(
        f"{name}: the file has {nbytes:,} bytes, but the encoding was interrupted at byte {offset:,}; "
        "use --force to start over"
    )


def _line(name: str, line: bytes, field: str) -> Document | Skipped:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Skipped(name, f"invalid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Skipped(name, f"invalid JSON: {error}")
    # Skipped and not empty text: a wrong --content-field must not look like an empty corpus.
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return Skipped(name, f"{field!r} is missing or not a string")
    # A lone surrogate is valid in JSON but not in UTF-8; decoding finds it.
    return _document(name, text.encode(errors="surrogatepass"))


def _parquet_batches(
    file: CorpusFile, field: str, first: Place, read_before: int, nbytes: int
) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import parquet

    name = str(file.path)
    try:
        with parquet.ParquetFile(file.path) as table:
            rows = table.metadata.num_rows
            type_ = table.schema_arrow.field(field).type if field in table.schema_arrow.names else None
            if type_ is None or not _is_text(type_):
                skipped = Skipped(name, f"no text column named {field!r}", rows)
                yield Batch("skipped", [skipped], first, read_before + file.nbytes)
                return
            values: list[bytes | None] = []
            size = 0
            for value in _column_values(table, field, first.number):
                values.append(value)
                size += len(value or b"")
                if size >= nbytes or len(values) >= _BATCH_DOCUMENTS:
                    # Parquet has no position in bytes, so it is estimated from the rows.
                    share = (first.number + len(values)) / max(1, rows)
                    batch = Batch("parquet", values, first, read_before + int(share * file.nbytes))
                    yield batch
                    first, values, size = batch.after(len(values)), [], 0
            if values:
                yield Batch("parquet", values, first, read_before + file.nbytes)
    except (pa.ArrowException, OSError) as error:
        # Arrow often reports damaged data as an OSError without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"{name}: not a readable Parquet file: {error}", path=name) from None


def parquet_rows(file: CorpusFile, field: str) -> int | None:
    """Return the rows of a Parquet file; None without the text column, or if it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path) as table:
            if field not in table.schema_arrow.names or not _is_text(table.schema_arrow.field(field).type):
                return None
            rows: int = table.metadata.num_rows
            return rows
    except (pa.ArrowException, OSError):
        # Reported when its documents are read.
        return None


def _column_values(table: Any, field: str, first_row: int) -> Iterator[bytes | None]:  # noqa: ANN401 (pyarrow)
    """Yield the values of a column from a row on. Row groups before it are not read."""
    groups = list(range(table.num_row_groups))
    to_skip = first_row
    while groups and to_skip >= (rows := table.metadata.row_group(groups[0]).num_rows):
        to_skip -= rows
        del groups[0]
    for batch in table.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups, columns=[field]):
        skipped = min(to_skip, batch.num_rows)
        to_skip -= skipped
        yield from _as_bytes(batch.column(0).slice(skipped))


def _as_bytes(column: Any) -> list[bytes | None]:  # noqa: ANN401 (pyarrow has no types)
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Bytes, not str: a string column may contain invalid UTF-8, and one such value would fail all of it.
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _is_text(type_: Any) -> bool:  # noqa: ANN401 (pyarrow has no types)
    from pyarrow import types

    # Repeated texts are often stored as a dictionary: pandas writes its categories so.
    if types.is_dictionary(type_):
        type_ = type_.value_type
    checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(check(type_) for check in checks)

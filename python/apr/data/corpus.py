"""Documents of a corpus in a fixed order: text files, directories, JSON lines, Parquet, standard input.

Documents come in batches as they are stored: paths, lines, values. Rust turns those into ids directly. A
document becomes a Python string only where one is needed: in samples, and if Rust rejects it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from apr.data.corpus_files import CorpusFile, list_corpus_files
from apr.data.corpus_json import BATCH_DOCUMENTS, json_batches, named_fields
from apr.data.corpus_parquet import check_column, parquet_batches
from apr.data.corpus_stream import STDIN
from apr.data.documents import START, Batch, Document, Place, Skipped
from apr.errors import RefusedError, UsageError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

# Stored bytes of a batch: enough to keep every core busy, and few enough to show progress.
BATCH_BYTES = 4 << 20
# UTF-8 has at most this many bytes per character.
_MAX_CHARACTER_BYTES = 4
# Rows without the text field after which a file is refused without reading the rest of it.
_MAX_ROWS_WITHOUT = 100_000


class Corpus:
    """The documents of some paths, in the order of the paths, and sorted within a directory.

    Args:
        roots: files and directories; `-` is JSON lines on standard input.
        patterns: globs, one of which a file within a directory must match. A glob without `/` is matched with
            the file's name, otherwise with its path below the root.
        exclude: globs for files and folders within a directory to leave out. A glob without `/` is matched
            with every part of the path. `*` also matches `/`: `test/*` is everything in the root's folder
            `test`.
        hidden: whether to include hidden files and folders within a directory, and those of version control.
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
        hidden: bool = False,
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
        listed = [
            file
            for root in roots
            for file in list_corpus_files(
                root, tuple(patterns), tuple(exclude), without, content_field, hidden=hidden
            )
        ]
        self.files = [file for file in listed if file.format != "hidden"]
        self.hidden = [str(file.path) for file in listed if file.format == "hidden"]
        """Hidden files and folders that are left out."""
        if not self.files:
            reason = "no files"
            if patterns:
                reason = f"no file matches {', '.join(patterns)}; use another --pattern"
            if self.hidden:
                reason += f", or pass --hidden ({self.hidden[0]} is hidden)"
            raise RefusedError(f"{', '.join(self.roots)}: {reason}")

    @cached_property
    def nbytes(self) -> int | None:
        """Bytes of all files as stored; None if standard input is one of them."""
        if any(str(file.path) == STDIN for file in self.files):
            return None
        return sum(file.nbytes for file in self.files)

    @property
    def format(self) -> str:
        """text, jsonl, json, parquet or mixed."""
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
                if texts_bytes < self._batch_bytes and len(texts) < BATCH_DOCUMENTS:
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
        if batch.format in ("jsonl", "json"):
            return _record(name, stored, self.content_field) if stored.strip() else None
        if stored is None:
            return Skipped(name, f"{self.content_field!r} is null")
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
        total = 0
        for batch in self._batches_of(file, Place(index), 0, characters):
            share = batch.read / max(1, file.nbytes)
            for n, item in enumerate(self.read_all(batch), start=1):
                if isinstance(item, Document):
                    # The first document may be longer than the head.
                    cut = 1.0 if documents else min(1.0, characters / max(1, len(item.text)))
                    documents.append(Document(item.name, item.text[:characters]))
                    total += len(documents[-1].text)
                    if total >= characters:
                        return documents, share * n / len(batch.stored) * cut
        return documents, 1.0

    def batches_at(self, place: Place, nbytes: int) -> Iterator[Batch]:
        """Yield the documents of a file with several documents from a place on, about `nbytes` at a time.

        `read` of the batches counts bytes of the file.

        Raises:
            FormatError: the file is damaged.
            OSError: reading failed within the file.
        """
        yield from self._batches_of(self.files[place.file], place, 0, nbytes)

    def check_fields(self, start: Place = START, stop: Place | None = None) -> None:
        """Check that in each file with rows, a row has the text field.

        A good file is read up to its first such row. A file without one in its first 100,000 rows is refused
        without reading the others. Standard input is checked when its documents are read.

        Args:
            start: where the first document begins; files before it are not checked.
            stop: where the first document begins that is left out; None is the end.

        Raises:
            RefusedError: no row has the field, and the message lists the fields that are there; no row is a
                JSON object; or two columns of a Parquet file have its name.
            FormatError: a file is damaged.
            OSError: reading failed within a file.
        """
        end = len(self.files) if stop is None else stop.file + 1
        for index, file in enumerate(self.files[start.file : end], start.file):
            if file.format not in ("jsonl", "json", "parquet") or str(file.path) == STDIN:
                continue
            if _why_unreadable(file) is not None:
                continue
            if file.format == "parquet":
                check_column(file, self.content_field)
            else:
                rows = (batch.stored for batch in json_batches(file, Place(index), 0, 1))
                self._check_rows(str(file.path), chain.from_iterable(rows))

    def _check_rows(self, name: str, rows: Iterable[bytes]) -> None:
        """Refuse rows of which none has the text field, or of which none is a JSON object."""
        names: dict[str, None] = {}
        count = invalid = 0
        reason = ""
        for row in rows:
            try:
                record = json.loads(row)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                if isinstance(record.get(self.content_field, 0), str | None):
                    return
                count += 1
                names |= dict.fromkeys(record)
            elif row.strip():
                invalid += 1
                if invalid == 1 and isinstance(item := _record(name, row, self.content_field), Skipped):
                    reason = item.reason
            if count + invalid == _MAX_ROWS_WITHOUT:
                break
        if invalid and not count:
            raise RefusedError(
                f"{name}: no row is a JSON object ({counted(invalid, 'row')}; the first: {reason}); check "
                "what the file contains, or leave it out with --exclude",
                path=name,
            )
        if not count:
            return
        field = f"the field {self.content_field!r}"
        what = f"a string in {field}" if self.content_field in names else field
        names.pop(self.content_field, None)
        others = f"its fields are {named_fields(names)}" if names else "it has no other field"
        raise RefusedError(
            f"{name}: no row has {what} ({counted(count, 'row')}); {others}; use another --content-field, "
            "or leave the file out with --exclude",
            path=name,
        )

    def _batches_of(self, file: CorpusFile, first: Place, read_before: int, nbytes: int) -> Iterator[Batch]:
        """Yield the documents of a JSON lines or Parquet file from a place on, about `nbytes` at a time."""
        reason = _why_unreadable(file)
        if reason is not None:
            yield Batch("skipped", [Skipped(str(file.path), reason)], first, read_before + file.nbytes)
        elif file.format == "parquet":
            yield from parquet_batches(file, self.content_field, first, read_before, nbytes)
        else:
            for n, batch in enumerate(json_batches(file, first, read_before, nbytes)):
                # Standard input cannot be read before it is encoded, as other files are.
                if n == 0 and str(file.path) == STDIN:
                    self._check_rows("standard input", batch.stored)
                yield batch


def _why_unreadable(file: CorpusFile) -> str | None:
    """Return why a file cannot be opened; it is skipped and counted.

    An error within a file ends the command instead, because nobody knows how many documents are lost.
    """
    if file.reason is not None or str(file.path) == STDIN:
        return file.reason
    try:
        file.path.open("rb").close()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


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


def _record(name: str, stored: bytes, field: str) -> Document | Skipped:
    try:
        record = json.loads(stored)
    except UnicodeDecodeError as error:
        return Skipped(name, f"invalid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Skipped(name, f"invalid JSON: {error}")
    if not isinstance(record, dict):
        return Skipped(name, "not a JSON object")
    # Skipped and not empty text: a wrong --content-field must not look like an empty corpus.
    if field not in record:
        return Skipped(name, f"no field {field!r}; its fields are {named_fields(record)}")
    text = record[field]
    if not isinstance(text, str):
        return Skipped(name, f"the field {field!r} is not a string")
    # A lone surrogate is valid in JSON but not in UTF-8; decoding finds it.
    return _document(name, text.encode(errors="surrogatepass"))

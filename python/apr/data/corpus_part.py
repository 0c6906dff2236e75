"""One of N parts of a corpus: a range of documents that follows from the corpus' files, I and N alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from apr.data.corpus_parquet import parquet_rows
from apr.data.corpus_stream import is_compressed
from apr.data.documents import START, Place
from apr.errors import UsageError

if TYPE_CHECKING:
    from apr.data.corpus import Corpus
    from apr.data.corpus_files import CorpusFile

_PART = re.compile(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})")


class Part(NamedTuple):
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """Read a part as it is written in `--part 3/7`.

    Raises:
        UsageError: it is not of that form, or not from 1/N to N/N.
    """
    matched = _PART.fullmatch(text)
    if matched is None or int(matched[1]) > int(matched[2]):
        raise UsageError(f"--part {text} is not valid; use I/N with I from 1 to N, such as 1/4")
    return Part(int(matched[1]), int(matched[2]))


class PartRange(NamedTuple):
    """The documents of a part: those that begin at `start` or later, and before `stop`."""

    start: Place
    stop: Place
    read_before: int
    """Bytes of the corpus files, as stored, before the part."""
    nbytes: int
    """Bytes of the part, as stored; a document that begins in it is in it as a whole."""


def part_range(corpus: Corpus, part: Part) -> PartRange:
    """Return the range of a part. Parts have the same number of bytes, to within a document.

    Plain JSON lines and Parquet files are cut between documents. Text files and compressed JSON lines are
    not: they belong to the part in which they begin.

    Args:
        corpus: the corpus; its files must have a size, so not standard input.
        part: which part.

    Raises:
        OSError: a JSON lines file cannot be read at a cut.
        UsageError: the corpus is standard input.
    """
    nbytes = corpus.nbytes
    if nbytes is None:
        raise UsageError("--part cannot be used with standard input, whose size is unknown")
    first, last = ((nbytes * n) // part.of for n in (part.number - 1, part.number))
    # Everything at the end, empty files too, is in the last part.
    stop = Place(len(corpus.files)) if part.number == part.of else _cut(corpus, last)
    return PartRange(_cut(corpus, first), stop, first, last - first)


def _cut(corpus: Corpus, byte: int) -> Place:
    """Return the place of the first document that begins at a byte of the corpus or after it."""
    if byte == 0:
        return START
    start = 0
    for index, file in enumerate(corpus.files):
        if start >= byte:
            return Place(index)
        if byte - start < file.nbytes:
            return _cut_within(corpus, file, index, byte - start)
        start += file.nbytes
    return Place(len(corpus.files))


def place_in_file(corpus: Corpus, index: int, offset: int) -> Place:
    """Return the place of the first document of a file that begins at a byte of it or after it.

    The start of the file if there is none, or if the file cannot be read from there.
    """
    place = _cut_within(corpus, corpus.files[index], index, offset) if offset else Place(index)
    return place if place.file == index else Place(index)


def _cut_within(corpus: Corpus, file: CorpusFile, index: int, offset: int) -> Place:
    after = Place(index + 1)
    if file.format == "parquet":
        rows = parquet_rows(file, corpus.content_field)
        row = -(-offset * (rows or 0) // file.nbytes)
        return Place(index, row) if rows is not None and row < rows else after
    if file.format == "jsonl" and not is_compressed(file.path):
        with file.path.open("rb") as stream:
            # From the byte before, which ends a line if a document begins at the offset itself.
            stream.seek(offset - 1)
            stream.readline()
            place = stream.tell()
        # The number of lines before it is unknown: counting them would read all that is in other parts.
        return Place(index, 0, place) if place < file.nbytes else after
    return after

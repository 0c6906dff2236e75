"""Documents of a corpus as they are stored, in batches, and the places where they begin."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Document:
    """One text: a file, a line of a JSON lines file, an element of a JSON array, a row of a Parquet file."""

    name: str
    """The file, with the line or row (from 1) if it has several documents."""
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Documents that are not valid: unreadable, not UTF-8, not a JSON object, or without the field."""

    name: str
    reason: str
    count: int = 1

    @property
    def hint(self) -> str:
        """What to do if nothing else is text; an empty text for other reasons than its characters."""
        if not self.reason.startswith("invalid UTF-8"):
            return ""
        return "; save texts as plain UTF-8, and import token ids with apr tokenize import"


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
    """text (paths), jsonl (lines), json (elements of an array), parquet (values as bytes or None) or skipped
    (Skipped)."""
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

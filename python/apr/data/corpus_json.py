"""JSON lines and JSON arrays of objects, plain or compressed, as the bytes of one object after the other."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from apr.data.corpus_stream import open_stream, without_bom
from apr.data.documents import Batch
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apr.data.corpus_files import CorpusFile
    from apr.data.documents import Place

# Documents of a batch at most.
BATCH_DOCUMENTS = 4096
# Bytes of an array that are read at a time.
_CHUNK_BYTES = 1 << 20
# A string up to its end, without the quotation mark; a backslash at the end of a chunk is left over.
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["{}\[\],]')
# Names that a message lists.
_MAX_NAMED = 10


def json_batches(file: CorpusFile, first: Place, read_before: int, nbytes: int) -> Iterator[Batch]:
    """Yield the objects of a file from a place on, about `nbytes` at a time.

    Raises:
        FormatError: the file is damaged: compressed data, or an array that does not end.
        RefusedError: the file ends before the place.
        OSError: reading failed.
    """
    is_array = file.format == "json"
    stored: list[bytes] = []
    size = 0
    with open_stream(file.path, 0 if is_array else first.offset) as (stream, tell):
        # Elements of an array have no position to seek to: those before the place are read again.
        objects = islice(_elements(stream, str(file.path)), first.number, None) if is_array else stream
        for item in objects:
            stored.append(item)
            size += len(item)
            if size >= nbytes or len(stored) >= BATCH_DOCUMENTS:
                # At most the listed size, because a file may grow while it is read.
                batch = Batch(file.format, stored, first, read_before + min(tell(), file.nbytes))
                yield batch
                first, stored, size = batch.after(len(stored)), [], 0
    if stored:
        yield Batch(file.format, stored, first, read_before + file.nbytes)


def _elements(stream: Any, name: str) -> Iterator[bytes]:  # noqa: ANN401 (gzip, pyarrow and io share no type)
    """Yield the bytes of each element of the array that a stream contains.

    Raises:
        FormatError: the array does not end, something follows it, or an element is missing.
    """
    depth, in_string, ended = 0, False, False
    pieces: list[bytes] = []
    left = b""
    is_first = True
    count = 0
    while chunk := stream.read(_CHUNK_BYTES):
        # A backslash at the end of a chunk belongs to the character after it.
        chunk, left = left + chunk, b""
        if is_first:
            chunk, is_first = without_bom(chunk), False
        start = at = 0
        while at < len(chunk):
            if in_string:
                at = _end_of_string(chunk, at)
                if at == len(chunk):
                    break
                if chunk[at : at + 1] == b"\\":
                    chunk, left = chunk[:at], chunk[at:]
                    break
                in_string, at = False, at + 1
                continue
            found = _STRUCTURE.search(chunk, at)
            if found is None:
                break
            symbol, at = found[0], found.end()
            in_string = symbol == b'"'
            closes = symbol == b"]" and depth == 1
            if closes or (symbol == b"," and depth == 1):
                element = b"".join([*pieces, chunk[start : at - 1]]).strip()
                # An empty array has no element. Otherwise there is one before each comma and before the end.
                if element:
                    count += 1
                    yield element
                elif not closes or count:
                    raise _bad_array(name, f"element {count + 1} is missing")
                pieces, start = [], at
            if symbol in b"[{":
                depth += 1
                if depth == 1:
                    start = at
            elif symbol in b"]}":
                depth -= 1
            if closes:
                ended = True
                break
        if ended:
            rest = chunk[at:] + left
            while rest or (rest := stream.read(_CHUNK_BYTES)):
                if rest.strip():
                    raise _bad_array(name, "something follows the array (JSON lines must be objects)")
                rest = b""
            return
        pieces.append(chunk[start:])
    raise _bad_array(name, f"it ends within its array, after {count} elements")


def _end_of_string(chunk: bytes, at: int) -> int:
    matched = _STRING.match(chunk, at)
    return at if matched is None else matched.end()


def _bad_array(name: str, problem: str) -> FormatError:
    return FormatError(f"{name}: damaged JSON array: {problem}", path=name)


def named_fields(names: Iterable[str]) -> str:
    """Return the names of fields or columns for a message, which may have thousands of them."""
    first = list(islice(names, _MAX_NAMED + 1))
    return ", ".join(map(repr, first[:_MAX_NAMED])) + (" …" if len(first) > _MAX_NAMED else "")

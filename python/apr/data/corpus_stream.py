"""The contents of a corpus file: stored as they are, or compressed with gzip or zstd."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from apr.errors import FormatError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STDIN = "-"
# Such a file can only be read from its start.
_COMPRESSED = (".gz", ".zst")
# Bytes that are skipped at a time in a stream that cannot seek.
_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def is_compressed(path: Path) -> bool:
    """Whether the name says that a file is compressed as a whole."""
    return path.name.lower().endswith(_COMPRESSED)


def without_bom(start: bytes) -> bytes:
    """Return the start of a text without the mark that some editors put before it."""
    return start.removeprefix(_BOM)


@contextmanager
def open_stream(path: Path, offset: int = 0) -> Iterator[tuple[Any, Callable[[], int]]]:
    """Open a file, or standard input, at an offset of its contents.

    Yields the stream, and a function that returns how many stored bytes were read.

    Raises:
        FormatError: compressed data that is damaged, or whose window is too large; also while it is read.
        RefusedError: the contents end before the offset.
        OSError: the file cannot be opened or read.
    """
    if str(path) == STDIN:
        _skip(sys.stdin.buffer, offset, "standard input")
        # The size of standard input is unknown, so progress in it cannot be shown.
        yield sys.stdin.buffer, lambda: 0
        return
    name = str(path)
    with path.open("rb") as raw:
        nbytes = os.fstat(raw.fileno()).st_size
        if not is_compressed(path):
            # Seeking beyond the end succeeds, and the rest of the corpus would be lost without a word.
            if offset > nbytes:
                raise _too_short(name, nbytes, offset)
            raw.seek(offset)
            yield raw, raw.tell
            return
        # Even the compression of nothing has some bytes. Readers of streams take this for their end.
        if not nbytes:
            raise FormatError(f"{name}: damaged file: it has no bytes; copy it again", path=name)
        with _naming_damage(name), _unpacked(raw, name) as stream:
            # The offset counts decompressed bytes, so all that is before it has to be decompressed again.
            _skip(stream, offset, name)
            yield stream, raw.tell


def _unpacked(raw: BinaryIO, name: str) -> io.BufferedReader | gzip.GzipFile:
    if name.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    import pyarrow as pa

    # Arrow's stream has no lines; the buffer around it splits them.
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))


@contextmanager
def _naming_damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        # gzip and Arrow report damaged data as an OSError without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # zstd's own words for a frame that was compressed with --long=28 or more.
        if "too much memory" in str(error):
            raise FormatError(
                f"{name}: its zstd window is larger than 128 MiB, which is not supported; compress it "
                "again with a window of at most --long=27",
                path=name,
            ) from None
        raise FormatError(f"{name}: damaged file: {error}", path=name) from None


def _skip(stream: Any, nbytes: int, name: str) -> None:  # noqa: ANN401 (gzip, pyarrow and io share no type)
    left = nbytes
    while left > 0:
        skipped = len(stream.read(min(left, _CHUNK_BYTES)))
        if not skipped:
            raise _too_short(name, nbytes - left, nbytes)
        left -= skipped


def _too_short(name: str, nbytes: int, offset: int) -> RefusedError:
    return RefusedError(
        f"{name}: the file has {nbytes:,} bytes, but the encoding was interrupted at byte {offset:,}; "
        "use --force to start over",
        path=name,
    )

"""Hypothesis strategies for tests of code that reads `.apr` files and token shards.

The files are real ones, written as `apr.save` and `apr repair-manifest` write them. They are small, and lie
in a temporary directory that is removed when the process ends, or in `directory` where one is passed. Each
example has a path of its own. The extra `testing` installs Hypothesis.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from apr.container.quantize import quantize
from apr.container.save import to_bytes
from apr.data.rebuild import repair
from apr.errors import named_extras

with named_extras():
    from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy
    from numpy.typing import NDArray

__all__ = [
    "DamagedFile", "apr_files", "damaged_files", "metadata", "names", "shard_directories", "tensors",
    "with_right_checksums",
]  # fmt: skip

_DTYPES = ("<f4", "<f2", "bfloat16", "<f8", "<i4", "<i8", "i1", "u1")
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_QUANTIZED: tuple[Literal["q8", "q4"], ...] = ("q8", "q4")
_HEADER_SIZE, _ALIGNMENT = 64, 64
_NUMBERS = itertools.count()


class DamagedFile(NamedTuple):
    """A file that no reader may take for a sound one."""

    path: Path
    damage: str
    """What was done to it, such as `byte 70 changed`."""


@st.composite
def tensors(
    draw: DrawFn, *, dtypes: Sequence[str] = _DTYPES, max_rank: int = 8, max_side: int = 3
) -> NDArray[Any]:
    """Arrays of any bits: NaN with payloads, infinities and subnormal numbers; scalars and empty ones too.

    Args:
        draw: is filled in by Hypothesis.
        dtypes: names of NumPy's dtypes, and `bfloat16`; by default all that both NumPy and `.apr` have.
        max_rank: the largest number of dimensions.
        max_side: the largest dimension.
    """
    name = draw(st.sampled_from(list(dtypes)))
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    shape = draw(st.lists(st.integers(0, max_side), max_size=max_rank))
    seed = draw(st.integers(0, 2**32 - 1))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


def names() -> SearchStrategy[str]:
    """Names that a tensor may have: any characters but NUL."""
    return _TEXT.filter(lambda name: bool(name) and "\0" not in name)


def metadata() -> SearchStrategy[dict[str, Any]]:
    """Metadata of a file: JSON values of every kind under any keys."""
    values: SearchStrategy[Any] = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | _TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(_TEXT, values, max_size=5)


@st.composite
def apr_files(draw: DrawFn, *, directory: Path | None = None) -> Path:
    """Sound files: up to six tensors of any dtype, some of them quantized, and any metadata.

    Args:
        draw: is filled in by Hypothesis.
        directory: where files are written and kept; a temporary directory by default.
    """
    return _written(draw(_contents()), directory)


@st.composite
def damaged_files(draw: DrawFn, *, directory: Path | None = None) -> DamagedFile:
    """Files with one damage each: `apr.verify` reports every one of them as not ok.

    The kinds are a changed byte, a range of zeros as a power failure leaves it, an end that is cut off, bytes
    that were appended, another magic, and fields that lie under right checksums.

    Args:
        draw: is filled in by Hypothesis.
        directory: where files are written and kept; a temporary directory by default.
    """
    content = draw(_contents())
    damage = draw(st.sampled_from([_change, _blank, _cut, _append, _lie_in_header, _lie_in_index]))
    damaged, what = damage(draw, content)
    return DamagedFile(_written(damaged, directory), what)


@st.composite
def shard_directories(draw: DrawFn, *, directory: Path | None = None) -> Path:
    """Directories of one to four token shards with a manifest, which may have a scan of them.

    Args:
        draw: is filled in by Hypothesis.
        directory: where they are written and kept; a temporary directory by default.
    """
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    vocab_size, seed = draw(st.integers(40, 2**17)), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    path = _fresh(directory, "shards")
    path.mkdir()
    for number, size in enumerate(sizes):
        # As frequent as words are: a corpus of which one id is nearly everything is refused.
        ids = np.minimum(random.zipf(1.3, size), vocab_size) - 1
        ids.astype("<u4").tofile(path / f"shard-{number:05}.bin")
    repair(path, verify=draw(st.booleans()))
    return path


def with_right_checksums(content: bytes) -> bytes:
    """Return the bytes of a version 2 file with the checksums of its header and its end made right.

    A reader that checks them first then has to look at what was changed.
    """
    if len(content) < _HEADER_SIZE + 4:
        return content
    changed = bytearray(content)
    changed[40:44] = struct.pack("<I", zlib.crc32(changed[:40] + changed[44:_HEADER_SIZE]))
    changed[-4:] = struct.pack("<I", zlib.crc32(changed[:-4]))
    return bytes(changed)


@st.composite
def _contents(draw: DrawFn) -> bytes:
    """Bytes of sound files."""
    plain: dict[str, Any] = draw(st.dictionaries(names(), tensors(), max_size=5))
    quantized = draw(st.none() | st.sampled_from(_QUANTIZED))
    if quantized is not None:
        values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((3, 40), np.float32)
        plain[draw(names())] = quantize(values, quantized)
    return to_bytes(plain, draw(metadata()))


def _change(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    at, bits = draw(st.integers(0, len(content) - 1)), draw(st.integers(1, 255))
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :], f"byte {at} changed"


def _blank(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    used = [at for at, byte in enumerate(content) if byte]
    start = draw(st.sampled_from(used))
    end = draw(st.integers(start + 1, len(content)))
    return content[:start] + bytes(end - start) + content[end:], f"bytes {start} to {end - 1} became zero"


def _cut(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    # Without just its checksum a file is legal: some old writers left it out.
    size = draw(st.integers(0, len(content) - 1).filter(lambda size: size != len(content) - 4))
    return content[:size], f"cut off after {size} of {len(content)} bytes"


def _append(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    more = draw(st.binary(min_size=1, max_size=100))
    return content + more, f"{len(more)} bytes appended"


# Field of the header: its place, its struct, and values that no file has.
_LIES: dict[str, tuple[int, str, Callable[[int], SearchStrategy[int]]]] = {
    "magic": (0, "<I", lambda _: st.sampled_from([0, 0x04034B50, 0x46554747])),
    "major version": (4, "<B", lambda _: st.integers(3, 255)),
    "metadata size": (20, "<I", lambda size: st.just(0) | st.integers(size, 2**32 - 1)),
    "tensor index offset": (24, "<Q", lambda size: st.integers(size, 2**64 - 1)),
    "data offset": (32, "<Q", lambda size: st.integers(size, 2**64 - 1) | st.just(_ALIGNMENT + 1)),
}


def _lie_in_header(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    name = draw(st.sampled_from(list(_LIES)))
    at, form, values = _LIES[name]
    value = draw(values(len(content)))
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return with_right_checksums(bytes(changed)), f"{name} is {value}, under right checksums"


def _lie_in_index(draw: DrawFn, content: bytes) -> tuple[bytes, str]:
    (count,), (at,) = struct.unpack_from("<I", content, 8), struct.unpack_from("<Q", content, 24)
    if not count:
        return _lie_in_header(draw, content)
    (name_size,) = struct.unpack_from("<H", content, at)
    name, rank = content[at + 2 : at + 2 + name_size].decode(), content[at + 3 + name_size]
    place = at + 4 + name_size + 8 * rank
    field = draw(st.sampled_from(["offset", "size"]))
    (stored,) = struct.unpack_from("<Q", content, place + 8 * (field == "size"))
    # Far outside of the file, or just so much that it reaches into the next tensor.
    value = (
        draw(st.integers(len(content), 2**64 - 1))
        if field == "offset"
        else stored + draw(st.integers(1, 2**40))
    )
    changed = bytearray(content)
    struct.pack_into("<Q", changed, place + 8 * (field == "size"), value)
    return with_right_checksums(
        bytes(changed)
    ), f"{field} of tensor {name!r} is {value}, under right checksums"


@cache
def _temporary() -> TemporaryDirectory[str]:
    # Cached, so that it lives as long as the process, whose end removes it.
    return TemporaryDirectory(prefix="apr-testing-")


def _fresh(directory: Path | None, name: str) -> Path:
    return Path(_temporary().name if directory is None else directory) / f"{name}-{next(_NUMBERS)}"


def _written(content: bytes, directory: Path | None) -> Path:
    path = _fresh(directory, "model").with_suffix(".apr")
    path.write_bytes(content)
    return path

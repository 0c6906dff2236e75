"""The fixed fields at the start of a file, and the entry of a tensor in the index."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from math import prod


class Flags(IntFlag):
    """Bits of the header's flags field; bits without a name are kept."""

    # No known writer compresses the data of version 2. Files with one of these two bits hold plain data, or
    # one runtime's compressed body, which is refused.
    LZ4_COMPRESSED = 1 << 0
    ZSTD_COMPRESSED = 1 << 1
    ENCRYPTED = 1 << 2
    SIGNED = 1 << 3
    SHARDED = 1 << 4
    QUANTIZED = 1 << 5
    HAS_FILTERBANK = 1 << 6
    HAS_MODEL_CARD = 1 << 7
    STREAMING = 1 << 8
    # Some writers leave it out although the metadata have a vocabulary, so nothing here decides by it.
    HAS_VOCAB = 1 << 9
    # Current writers set it. Older files lack it, and are row-major too.
    LAYOUT_ROW_MAJOR = 1 << 10
    # A reader must refuse such a file.
    LAYOUT_COLUMN_MAJOR = 1 << 11


def flag_states(flags: IntFlag) -> dict[str, object]:
    """Return which named flags are set, by lower-case name, and the numbers of the bits without a name."""
    named = {flag.value for flag in type(flags)}
    return {
        "flags": {str(flag.name).lower(): flag in flags for flag in type(flags)},
        # The field has 16 bits.
        "unknown_flags": [bit for bit in range(16) if flags & (1 << bit) and 1 << bit not in named],
    }


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The fields that the header of every version has: the magic bytes, and the version (major, minor)."""

    magic: bytes
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Header(FileHeader):
    """The fields of the header. Offsets and sizes are in bytes.

    The JSON container (magic `APR1`) has no flags, no checksum of its header and no reserved bytes: `flags`
    is empty, `checksum` and `reserved` are None. Its version is the one that its magic stands for.
    """

    flags: Flags
    tensor_count: int
    metadata_offset: int
    metadata_size: int
    tensor_index_offset: int
    data_offset: int
    checksum: int | None
    reserved: bytes | None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in the index.

    Attributes:
        name: the tensor's name.
        dtype: the dtype as the format spells it, such as "bf16" or "q4_k".
        shape: the dimensions, empty for a scalar.
        nbytes: the number of stored bytes.
        offset: the first byte, counted from the start of the file. In a file that is compressed as a whole,
            counted from the start of the decompressed contents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int

    @property
    def tied(self) -> bool:
        """Whether the tensor has no bytes of its own and shares the values of the token embedding."""
        # The format allows this for `lm_head.weight` only.
        return self.nbytes == 0 and prod(self.shape) > 0

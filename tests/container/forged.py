"""Writes v2 files field by field, so that each field can lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import prod

F32, ROW_MAJOR = 0, 1 << 10


def align(size: int) -> int:
    return -size % 64 + size


@dataclass(frozen=True)
class Entry:
    """An entry of the index; what is None is what an honest f32 tensor has."""

    name: bytes = b"a"
    dtype: int = F32
    dims: tuple[int, ...] = (4,)
    offset: int | None = None
    size: int | None = None
    ndim: int | None = None
    name_size: int | None = None


def forge(
    *entries: Entry,
    metadata: bytes = b"{}",
    magic: bytes = b"APR\0",
    version: tuple[int, int] = (2, 0),
    flags: int = ROW_MAJOR,
    body: bytes | None = None,
    reserved: bytes = b"",
    **fields: int,
) -> bytes:
    """A file with right checksums around these entries; `fields` replace the header's honest values."""
    index, end = b"", 0
    for entry in entries:
        size = 4 * prod(entry.dims) if entry.size is None else entry.size
        offset = end if entry.offset is None else entry.offset
        index += struct.pack("<H", len(entry.name) if entry.name_size is None else entry.name_size)
        index += entry.name
        index += bytes([entry.dtype, len(entry.dims) if entry.ndim is None else entry.ndim])
        index += struct.pack(f"<{len(entry.dims)}Q", *entry.dims) + struct.pack("<QQ", offset, size)
        end = max(end, offset + align(size)) if offset + size < 1 << 20 else end
    index_offset = align(64 + len(metadata))
    data_offset = align(index_offset + len(index))
    header = {
        "tensor_count": len(entries),
        "metadata_offset": 64,
        "metadata_size": len(metadata),
        "tensor_index_offset": index_offset,
        "data_offset": data_offset,
    } | fields
    head = magic + bytes(version) + struct.pack("<HIQIQQ", flags, *header.values())
    tail = reserved.ljust(20, b"\0")
    head += struct.pack("<I", zlib.crc32(head + tail)) + tail
    plain = (head + metadata).ljust(index_offset, b"\0") + index
    plain = plain.ljust(data_offset, b"\0") + (bytes(end) if body is None else body)
    return plain + struct.pack("<I", zlib.crc32(plain))

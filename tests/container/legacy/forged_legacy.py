"""Write files of the older forms field by field, so that a test can set any field to a wrong value."""

from __future__ import annotations

import json
import struct
import zlib


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def with_crc(content: bytes) -> bytes:
    return content + u32(zlib.crc32(content))


def lz4(content: bytes) -> bytes:
    """Return an LZ4 block that holds the content as literals."""
    rest = len(content) - 15
    length = bytes([15 << 4]) + b"\xff" * (rest // 255) + bytes([rest % 255])
    return (bytes([len(content) << 4]) if rest < 0 else length) + content


def zstd(content: bytes, size: int | None = None) -> bytes:
    """Return a zstd frame of one raw block. `size` replaces the content size that the frame declares."""
    head = b"\x28\xb5\x2f\xfd\xa0" + u32(len(content) if size is None else size)
    return head + u32(len(content) << 3 | 1)[:3] + content


def entry(
    name: str = "a", shape: tuple[int, ...] = (4,), offset: int = 0, **fields: object
) -> dict[str, object]:
    """Return an entry of the JSON container's index. `fields` replace or add fields."""
    size = 4
    for dim in shape:
        size *= dim
    return {"name": name, "dtype": "F32", "shape": list(shape), "offset": offset, "size": size} | fields


def forge_json(
    *entries: object,
    metadata: bytes = b"{}",
    index: bytes | None = None,
    data: bytes = bytes(16),
    metadata_size: int | None = None,
    index_size: int | None = None,
    count: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """Return a JSON container with a correct checksum. Fields that are None get their correct value."""
    listed = json.dumps(list(entries)).encode() if index is None else index
    content = b"APR1" + u32(len(metadata) if metadata_size is None else metadata_size) + metadata
    content += u32(
        len(entries) if count is None else count, len(listed) if index_size is None else index_size
    )
    return with_crc(content + listed + data) + tail


def wrap(
    content: bytes, how: int = 2, magic: bytes = b"APR2", size: int | None = None, packed: bytes | None = None
) -> bytes:
    """Return a file in a wrapper: 0 plain, 1 LZ4, 2 zstd. `size` replaces the correct length."""
    length = u32(len(content) if size is None else size)
    body = {0: content, 1: length + lz4(content), 2: zstd(content)}[how] if packed is None else packed
    return magic + bytes([how]) + length + body


def forge_v1(
    metadata: bytes = b"{}",
    payload: bytes = b"payload",
    signature: bytes = b"",
    magic: bytes = b"APRN",
    version: tuple[int, int] = (1, 0),
    model_type: int = 1,
    compression: int = 0,
    flags: int = 0,
    quality: int = 0,
    reserved: bytes = b"",
    tail: bytes = b"",
    **sizes: int,
) -> bytes:
    """Return a version 1 file with a correct checksum. `sizes` replace those in the header."""
    stored = {"metadata_size": len(metadata), "payload_size": len(payload), "uncompressed_size": len(payload)}
    head = magic + bytes(version) + struct.pack("<H", model_type) + u32(*(stored | sizes).values())
    head += bytes([compression, flags, quality]) + reserved.ljust(9, b"\0")
    return with_crc(head + metadata + payload + signature) + tail

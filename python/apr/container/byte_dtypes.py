"""Dtypes that the format does not have: the bytes are stored as u8, and the metadata tell what they are.

safetensors has them, so that a checkpoint with masks or eight-bit floats keeps its tensors. The metadata key
`apr.dtypes` maps the name of each such tensor to its dtype and its shape. A reader that does not know the key
sees the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from apr._core import nbytes as format_nbytes
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

# The metadata key: {tensor: {"dtype": name, "shape": dimensions}}.
DTYPES_KEY = "apr.dtypes"
# Bits of a value, by safetensors' names in lower case. Values of less than eight bits share bytes.
BITS = {
    "bool": 8,
    "i16": 16,
    "u16": 16,
    "u32": 32,
    "u64": 64,
    "f8_e4m3": 8,
    "f8_e5m2": 8,
    "f8_e8m0": 8,
    "f8_e4m3fnuz": 8,
    "f8_e5m2fnuz": 8,
    "c64": 64,
    "f4": 4,
    "f6_e2m3": 6,
    "f6_e3m2": 6,
}
# The dtype whose tensors hold the bytes.
STORED = "u8"
# The format's limit.
_MAX_DIMS = 8
# Characters of a forged value that an error shows.
_SHOWN = 80


def stored_as(dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and the shape in the index. The last dimension counts bytes instead of values."""
    if dtype not in BITS:
        return dtype, shape
    if BITS[dtype] == 8:
        return STORED, shape
    row, odd_bits = divmod(shape[-1] * BITS[dtype], 8) if shape else (0, 1)
    return STORED, (prod(shape) * BITS[dtype] // 8,) if odd_bits else (*shape[:-1], row)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the number of bytes that a tensor takes in a file.

    Raises:
        ValueError: an unknown dtype, or a shape that is too large.
    """
    return format_nbytes(*stored_as(dtype, shape))


def check_unreserved(metadata: Mapping[str, object] | None) -> None:
    """Refuse metadata that already use the key, and what is not metadata.

    Raises:
        TypeError: not a mapping.
        ValueError: the metadata have the key.
    """
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
    if DTYPES_KEY in metadata:
        raise ValueError(
            f"metadata key {DTYPES_KEY!r} is reserved for the dtypes of tensors that are stored as bytes; "
            "leave it out or rename it"
        )


def with_dtypes(
    metadata: Mapping[str, object] | None, tensors: Iterable[tuple[str, str, tuple[int, ...]]]
) -> Mapping[str, object]:
    """Return metadata with the dtypes of the tensors (name, dtype, shape) that are stored as bytes.

    Raises:
        ValueError: the metadata already use the key.
    """
    check_unreserved(metadata)
    dtypes = {
        name: {"dtype": dtype, "shape": list(shape)}
        for name, dtype, shape in sorted(tensors)
        if dtype in BITS
    }
    return {**(metadata or {}), DTYPES_KEY: dtypes} if dtypes else metadata or {}


def parse_dtypes(path: str, value: object) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each tensor that the metadata key lists.

    Args:
        path: the file, for errors.
        value: the value of the key; None if the metadata do not have it.

    Raises:
        FormatError: the value does not have the form of the key.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{path}: metadata key {DTYPES_KEY}: not an object", path=path)
    return {name: _parse_entry(path, name, entry) for name, entry in value.items()}


def check_size(path: str, name: str, dtype: str, shape: tuple[int, ...], stored_bytes: int) -> None:
    """Check that a tensor's true dtype and shape take the bytes that are stored.

    Raises:
        FormatError: they take another number of bytes.
    """
    try:
        fits = nbytes(dtype, shape) == stored_bytes and stored_bytes * 8 == prod(shape) * BITS[dtype]
    except (ValueError, OverflowError):  # more bytes than a file can have
        fits = False
    if not fits:
        shown = str(list(shape))[:_SHOWN]
        raise FormatError(
            f"{path}: metadata key {DTYPES_KEY}: tensor {name!r} has {stored_bytes} bytes, which are not "
            f"those of {dtype} {shown}",
            path=path,
            tensor=name,
        )


def _parse_entry(path: str, name: str, entry: Any) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401 (any JSON)
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    # `type` and not `isinstance`: JSON's true would count as 1.
    if (
        not isinstance(dtype, str)
        or dtype not in BITS
        or not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise FormatError(
            f"{path}: metadata key {DTYPES_KEY}: invalid entry of tensor {name!r}: {str(entry)[:_SHOWN]}; "
            f"known dtypes are {', '.join(BITS)}",
            path=path,
            tensor=name,
        )
    return dtype, tuple(shape)

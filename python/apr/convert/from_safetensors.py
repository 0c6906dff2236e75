"""Read safetensors files by position, one chunk at a time.

The format (https://github.com/huggingface/safetensors#format) is the length of a header, the header as JSON,
and the values.
"""

# The safetensors package is not used for reading. Measured with version 0.8.0: with framework="np",
# `get_slice` reads the whole tensor for any slice (300 MB of memory for 1,000 values) and bfloat16 fails;
# with framework="pt" it needs torch, which takes seconds to import and which a conversion does without. Its
# errors name neither the tensor nor the byte.

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import numpy as np

from apr.container.dtypes import NUMPY
from apr.container.save import TensorSpec
from apr.convert.stream import (
    ModelStream,
    TensorStream,
    chunk_ranges,
    has_lone_surrogate,
    read_json_object,
)
from apr.errors import FormatError, TruncatedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader

    from numpy.typing import NDArray

# Bits of a value of each dtype, as the safetensors package 0.8 lists them. Ours have the same names in lower
# case.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}
METADATA = "__metadata__"
# A metadata key whose value lists the keys that hold JSON. safetensors stores only texts, so that without the
# list the number 3 and the text "3" would look the same.
JSON_KEYS = "apr.json_keys"
# The limit of the safetensors package.
_MAX_HEADER = 100_000_000
# Characters of a header entry that an error shows.
_SHOWN_ENTRY = 120


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's entry in the header, whose shape and bytes fit each other.

    Attributes:
        name: the tensor's name.
        dtype: the dtype as safetensors spells it.
        shape: the dimensions.
        offset: the first byte, counted from the start of the file.
        nbytes: the number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What the header of a file lists.

    Attributes:
        texts: the metadata.
        entries: the tensors, in the order of their bytes. They follow one another without a gap.
        header_size: the bytes before the first tensor.
        size: the bytes of the file.
    """

    texts: dict[str, str]
    entries: list[Entry]
    header_size: int
    size: int


def read(path: Path) -> ModelStream:
    """Read a safetensors file, or the index of several.

    Raises:
        FormatError: the structure of a file is invalid, or the index does not match the files.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: a file cannot be read.
    """
    texts, tensors = read_several(path) if path.name.endswith(".json") else read_file(path)
    return ModelStream(from_texts(texts), tensors)


def read_file(path: Path) -> tuple[dict[str, str], list[TensorStream]]:
    """Return the metadata and the tensors of a file, in the order of their bytes.

    Raises:
        FormatError: the structure of the file is invalid.
        TruncatedError: the file ends before its tensors do.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: the file cannot be read.
    """
    contents = read_contents(path)
    return contents.texts, [_stream(path, entry) for entry in contents.entries]


def read_contents(path: Path) -> Contents:
    """Read and check the header of a file, with tensors of any dtype.

    Raises:
        FormatError: the structure of the file is invalid.
        TruncatedError: the file ends before its tensors do.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, values_start = _read_header(path, file, size)
    texts = header.pop(METADATA, None) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise FormatError(f"{path}: {METADATA} is not an object of strings", path=path)
    entries = [_parse_entry(path, name, entry, values_start) for name, entry in header.items()]
    # By both ends: a tensor without values starts at the same byte as the one after it.
    entries.sort(key=lambda entry: (entry.offset, entry.offset + entry.nbytes))
    end = values_start
    for entry in entries:
        # Bytes between or below two tensors could hide anything; the safetensors package refuses them too.
        if entry.offset != end:
            raise FormatError(
                f"{path}: {entry.name} starts at byte {entry.offset - values_start} of the data, but the "
                f"tensor before it ends at {end - values_start}",
                path=path,
                tensor=entry.name,
                offset=entry.offset,
            )
        end += entry.nbytes
        if end > size:
            raise TruncatedError(
                f"{path}: {entry.name} ends at byte {end}, but the file ends at byte {size}; copy it again",
                path=path,
                tensor=entry.name,
                offset=size,
            )
    if end != size:
        raise FormatError(
            f"{path}: the tensors end at byte {end}, but the file ends at byte {size}", path=path, offset=end
        )
    return Contents(texts, entries, values_start, size)


def read_several(index: Path) -> tuple[dict[str, str], list[TensorStream]]:
    """Return the metadata and the tensors of a model in several files, given by its index.

    If two files have different metadata under a key, that of the first file counts.

    Raises:
        FormatError: a file is invalid, is not in the directory of the index, or does not match it.
        TruncatedError: a file ends before its tensors do.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: a file cannot be read.
    """
    files = read_index(index)
    texts: dict[str, str] = {}
    tensors: list[TensorStream] = []
    for path, contents in files.items():
        texts = contents.texts | texts
        tensors += [_stream(path, entry) for entry in contents.entries]
    return texts, tensors


def read_index(index: Path) -> dict[Path, Contents]:
    """Read an index and the headers of the files that it names, in name order.

    Raises:
        FormatError: a file is invalid, is not in the directory of the index, or does not match it.
        TruncatedError: a file ends before its tensors do.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: a file cannot be read.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError(
            f"{index}: weight_map must be an object that maps tensor names to file names", path=index
        )
    files: dict[Path, Contents] = {}
    home: dict[str, str] = {}
    for file_name in sorted(set(weight_map.values())):
        # A name with a directory in it could reach any file of the machine.
        if Path(file_name).name != file_name or not (index.parent / file_name).is_file():
            raise FormatError(f"{index}: {file_name!r} is not a file in this directory", path=index)
        contents = files[index.parent / file_name] = read_contents(index.parent / file_name)
        for entry in contents.entries:
            if entry.name in home:
                raise FormatError(
                    f"{index}: {entry.name} is in two files, {home[entry.name]} and {file_name}",
                    path=index,
                    tensor=entry.name,
                )
            home[entry.name] = file_name
    for name, file_name in weight_map.items():
        if home.get(name) != file_name:
            raise FormatError(f"{index}: {name} is not in {file_name}", path=index, tensor=name)
    return files


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return metadata as `to_safetensors.to_texts` got them; texts from other writers stay texts."""
    json_keys = _parse_json(texts.get(JSON_KEYS, ""), None)
    if not isinstance(json_keys, list):
        return dict(texts)
    return {
        # A text that was edited since, and is no longer JSON, stays as it is.
        key: _parse_json(text, text) if key in json_keys else text
        for key, text in texts.items()
        if key != JSON_KEYS
    }


def _parse_json(text: str, default: object) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return default


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the header, and the byte at which the values start."""
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    # Checked before the header is read: a forged length would ask for any amount of memory.
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise FormatError(
            f"{path}: not a safetensors file: its header would take {length} bytes, more than the file has",
            path=path,
            offset=0,
        )
    try:
        # Decoded first: `json` would accept other encodings, and lone surrogates.
        header = json.loads(file.read(length).decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: invalid JSON in the header: {error}", path=path, offset=8) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is not a JSON object", path=path, offset=8)
    texts = header.get(METADATA)
    for what, keys in (
        ("tensor name", header),
        ("metadata key", texts if isinstance(texts, dict) else ()),
        ("metadata value", texts.values() if isinstance(texts, dict) else ()),
    ):
        for key in keys:
            if isinstance(key, str) and has_lone_surrogate(key):
                raise FormatError(
                    f"{path}: {what} {key[:_SHOWN_ENTRY]!r} in the header has a lone surrogate, which UTF-8 "
                    "cannot encode",
                    path=path,
                    offset=8,
                )
    return header, 8 + length


def _parse_entry(path: Path, name: str, entry: object, values_start: int) -> Entry:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
        shown = repr(entry)[:_SHOWN_ENTRY]
        raise FormatError(f"{path}: {name} has an invalid header entry: {shown}", path=path, tensor=name)
    if dtype not in _BITS:
        raise UnsupportedError(
            f"{path}: {name} has the unknown dtype {dtype[:_SHOWN_ENTRY]!r}; known are {', '.join(_BITS)}",
            path=path,
            tensor=name,
        )
    start, stop = offsets
    needed, odd_bits = divmod(prod(shape) * _BITS[dtype], 8)
    if odd_bits or stop - start != needed:
        # A product of forged dimensions can have more digits than Python prints.
        bytes_needed = "no whole number of them" if odd_bits else min(needed, 1 << 64)
        raise FormatError(
            f"{path}: {name} has {stop - start} bytes, but {dtype} {str(shape)[:_SHOWN_ENTRY]} needs "
            f"{bytes_needed}",
            path=path,
            tensor=name,
        )
    return Entry(name, dtype, tuple(shape), values_start + start, needed)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    # `type` and not `isinstance`: JSON's true would count as 1.
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _stream(path: Path, entry: Entry) -> TensorStream:
    spec = TensorSpec(entry.name, entry.dtype.lower(), entry.shape)

    def chunks() -> Iterator[NDArray[Any]]:
        # Packed values are copied as bytes.
        dtype = NUMPY.get(spec.dtype, NUMPY["u8"])
        with path.open("rb") as file:
            for start, stop in chunk_ranges(entry.nbytes // dtype.itemsize):
                yield read_values(file, entry, dtype, start, stop)

    return TensorStream(spec, chunks)


def read_values(
    file: BufferedReader, entry: Entry, dtype: np.dtype[Any], start: int, stop: int
) -> NDArray[Any]:
    """Read values `start` to `stop` of a tensor in row-major order, as a one-dimensional array of `dtype`.

    Raises:
        TruncatedError: the file was cut short since its header was read.
    """
    values: NDArray[Any] = np.empty(stop - start, dtype)
    at = entry.offset + start * dtype.itemsize
    file.seek(at)
    if file.readinto(values.view(np.uint8).data) != values.nbytes:
        raise TruncatedError(
            f"{file.name}: {entry.name}: the file was truncated while it was read",
            path=file.name,
            tensor=entry.name,
            offset=at,
        )
    return values

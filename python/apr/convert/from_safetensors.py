"""safetensors files, read by position and written in stretches.

The safetensors package reads through a mapping and writes from memory; a conversion must hold neither. The
format (https://github.com/huggingface/safetensors#format) is a length, a JSON header and the values.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import numpy as np

from apr.container.dtypes import NUMPY
from apr.container.save import TensorSpec
from apr.convert.stream import Item, Model, json_object, stretches
from apr.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# safetensors' dtype: ours.
DTYPES = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F64": "f64",
    "I32": "i32",
    "I64": "i64",
    "I8": "i8",
    "U8": "u8",
}
METADATA = "__metadata__"
# Among the texts under it, says which of them are JSON: numbers, for example, and not texts that look so.
JSON_KEYS = "apr.json_keys"
_MAX_HEADER = 100_000_000
# Characters of an entry in an error.
_SHOWN = 120


def read_model(path: Path) -> Model:
    """A safetensors file, or several with their index, as a model; errors as of `read` and `read_several`."""
    texts, items = read_several(path) if path.name.endswith(".json") else read(path)
    return Model(from_texts(texts), items)


def read(path: Path) -> tuple[dict[str, str], list[Item]]:
    """The texts under `__metadata__` and the tensors of a file, in the order of their bytes.

    Raises:
        FormatError: the structure of the file lies; with the tensor.
        UnsupportedError: a tensor of a dtype that .apr lacks.
        OSError: as `open` would.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(path, file, size)
    texts = header.pop(METADATA, None) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise FormatError(f"{path}: {METADATA} is no mapping of texts to texts", path=path)
    found, end = [], 0
    for name, (dtype, shape, begin, stop) in sorted(
        ((name, _entry(path, name, entry)) for name, entry in header.items()), key=lambda row: row[1][2:]
    ):
        if begin != end:
            raise FormatError(
                f"{path}: {name}: its bytes start at {begin}, those before end at {end}",
                path=path,
                tensor=name,
            )
        end = stop
        found.append(_item(path, TensorSpec(name, dtype, shape), start + begin))
    if start + end != size:
        raise FormatError(
            f"{path}: the tensors end at byte {start + end}, the file at {size}", path=path, offset=size
        )
    return texts, found


def read_several(index: Path) -> tuple[dict[str, str], list[Item]]:
    """The texts and the tensors of a model in several files, of which the index says what is in which.

    Of texts that differ between the files, those of the first count.

    Raises:
        FormatError: a file lies, is not beside the index, or lacks a tensor that it should hold.
        UnsupportedError, OSError: as `read`.
    """
    where = json_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise FormatError(f"{index}: no weight_map of tensors to files", path=index)
    texts: dict[str, str] = {}
    found: dict[str, tuple[str, Item]] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise FormatError(f"{index}: {name!r} is no file of this directory", path=index)
        more, items = read(index.parent / name)
        texts = more | texts
        for item in items:
            if item.spec.name in found:
                raise FormatError(
                    f"{index}: {item.spec.name} is in two files, {found[item.spec.name][0]} and {name}",
                    path=index,
                    tensor=item.spec.name,
                )
            found[item.spec.name] = (name, item)
    for tensor, name in where.items():
        if tensor not in found or found[tensor][0] != name:
            raise FormatError(f"{index}: {tensor} is not in {name}", path=index, tensor=tensor)
    return texts, [item for _, item in found.values()]


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that `to_texts` was given; texts that it did not make are texts.

    A text that was changed since, so that it is no JSON, stays as it is.
    """
    others = _json(texts.get(JSON_KEYS, ""))
    if not isinstance(others, list):
        return dict(texts)
    return {
        key: _json(text, text) if key in others else text for key, text in texts.items() if key != JSON_KEYS
    }


def _json(text: str, otherwise: object = None) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def _header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the values start."""
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise FormatError(
            f"{path}: no safetensors file: its header would take {length} bytes", path=path, offset=0
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is no JSON ({error})", path=path, offset=8) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is no JSON object", path=path, offset=8)
    return header, 8 + length


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    found = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        shown = repr(entry)[:_SHOWN]
        raise FormatError(f"{path}: {name}: no entry of a header: {shown}", path=path, tensor=name)
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{path}: {name} has dtype {dtype}, an .apr file holds {', '.join(DTYPES.values())}",
            path=path,
            tensor=name,
        )
    begin, stop = offsets
    needed = prod(shape) * NUMPY[DTYPES[dtype]].itemsize
    if stop - begin != needed:
        raise FormatError(
            f"{path}: {name}: {stop - begin} bytes, {dtype} {shape} takes {needed}", path=path, tensor=name
        )
    return DTYPES[dtype], tuple(shape), begin, stop


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _item(path: Path, spec: TensorSpec, start: int) -> Item:
    def parts() -> Iterator[NDArray[Any]]:
        dtype = NUMPY[spec.dtype]
        with path.open("rb") as file:
            file.seek(start)
            for first, last in stretches(prod(spec.shape)):
                values: NDArray[Any] = np.empty(last - first, dtype)
                if file.readinto(values.view(np.uint8).data) != values.nbytes:
                    raise FormatError(
                        f"{path}: {spec.name}: the file was cut short meanwhile", path=path, tensor=spec.name
                    )
                yield values

    return Item(spec, parts)

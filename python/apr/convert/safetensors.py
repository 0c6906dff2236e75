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
from apr.container.metadata import as_texts
from apr.container.save import TensorSpec
from apr.convert.stream import Item, json_object, stretches
from apr.errors import FormatError, UnsupportedError
from apr.files import replacing, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

# safetensors' dtype: ours.
_DTYPES = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F64": "f64",
    "I32": "i32",
    "I64": "i64",
    "I8": "i8",
    "U8": "u8",
}
_NAMES = {ours: theirs for theirs, ours in _DTYPES.items()}
# The package writes wide dtypes first, so that all are aligned; in this order.
_ORDER = ("i64", "f64", "f32", "i32", "bf16", "f16", "i8", "u8")
_METADATA = "__metadata__"
# Among the texts under it, says which of them are JSON: numbers, for example, and not texts that look so.
_MARK = "apr.json_keys"
INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000
# Characters of an entry in an error.
_SHOWN = 120


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
    texts = header.pop(_METADATA, None) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise FormatError(f"{path}: {_METADATA} is no mapping of texts to texts", path=path)
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


def write(path: Path, items: Sequence[Item], texts: Mapping[str, str]) -> None:
    """Write a file as the safetensors package would: the same bytes for the same tensors. Atomic.

    Raises:
        UnsupportedError: a tensor whose bytes are quantized, or whose name means something else there.
        OSError: the file cannot be written; what was there is as it was.
    """
    for item in items:
        _check(path, item.spec)
    ordered = sorted(items, key=lambda item: (_ORDER.index(item.spec.dtype), item.spec.name))
    header: dict[str, Any] = {_METADATA: dict(texts)} if texts else {}
    end = 0
    for item in ordered:
        spec = item.spec
        start, end = end, end + item.nbytes
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for item in ordered:
            for part in item.stored():
                file.write(part.data)


def write_several(
    directory: Path, groups: Sequence[Sequence[Item]], first: Mapping[str, str], each: Mapping[str, str]
) -> None:
    """Write a model in several files and their index, as transformers names them; errors as in `write`.

    Args:
        directory: it must be there.
        groups: the tensors of each file.
        first: the texts of the first file.
        each: the texts of every file.
    """
    where: dict[str, str] = {}
    for n, group in enumerate(groups, 1):
        name = f"model-{n:05}-of-{len(groups):05}.safetensors"
        write(directory / name, group, {**each, **(first if n == 1 else {})})
        where |= {item.spec.name: name for item in group}
    total = sum(item.nbytes for group in groups for item in group)
    write_json(
        directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    )


def to_texts(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of `path` as safetensors holds them, text to text: others as JSON, and which ones these are.

    Raises:
        UnsupportedError: metadata that have the key under which that is said.
    """
    if _MARK in metadata:
        raise UnsupportedError(
            f"{path}: metadata key {_MARK!r} would say in safetensors which texts are JSON: "
            f"apr stamp {_MARK}=null removes it",
            path=path,
        )
    others = [key for key, value in metadata.items() if not isinstance(value, str)]
    said = {_MARK: json.dumps(others, ensure_ascii=False)} if others else {}
    return as_texts(metadata) | said


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that `to_texts` was given; texts that it did not make are texts.

    A text that was changed since, so that it is no JSON, stays as it is.
    """
    others = _json(texts.get(_MARK, ""))
    if not isinstance(others, list):
        return dict(texts)
    return {key: _json(text, text) if key in others else text for key, text in texts.items() if key != _MARK}


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
    if dtype not in _DTYPES:
        raise UnsupportedError(
            f"{path}: {name} has dtype {dtype}, an .apr file holds {', '.join(_NAMES)}",
            path=path,
            tensor=name,
        )
    begin, stop = offsets
    needed = prod(shape) * NUMPY[_DTYPES[dtype]].itemsize
    if stop - begin != needed:
        raise FormatError(
            f"{path}: {name}: {stop - begin} bytes, {dtype} {shape} takes {needed}", path=path, tensor=name
        )
    return _DTYPES[dtype], tuple(shape), begin, stop


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


def _check(path: Path, spec: TensorSpec) -> None:
    if spec.name == _METADATA:
        raise UnsupportedError(
            f"{path}: safetensors holds no tensor named {_METADATA}", path=path, tensor=spec.name
        )
    if spec.dtype not in _NAMES:
        raise UnsupportedError(
            f"{path}: {spec.name} is {spec.dtype}, which safetensors does not hold",
            path=path,
            tensor=spec.name,
        )

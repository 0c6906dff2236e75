"""Write safetensors files in stretches: the bytes that the safetensors package would write.

The package writes from memory; a conversion must not hold a whole tensor.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from apr.compat.text_metadata import as_texts
from apr.convert.from_safetensors import DTYPES, JSON_KEYS, METADATA
from apr.convert.plan import SAFETENSORS_INDEX
from apr.errors import UnsupportedError
from apr.files import replacing, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from apr.container.save import TensorSpec
    from apr.convert.stream import Item

_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
# The package writes wide dtypes first, so that all are aligned; in this order.
_ORDER = ("i64", "f64", "f32", "i32", "bf16", "f16", "i8", "u8")


def write(path: Path, items: Sequence[Item], texts: Mapping[str, str]) -> None:
    """Write a file as the safetensors package would: the same bytes for the same tensors. Atomic.

    Raises:
        UnsupportedError: a tensor whose bytes are quantized, or whose name means something else there.
        OSError: the file cannot be written; what was there is as it was.
    """
    for item in items:
        _check(path, item.spec)
    ordered = sorted(items, key=lambda item: (_ORDER.index(item.spec.dtype), item.spec.name))
    header: dict[str, Any] = {METADATA: dict(texts)} if texts else {}
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
        directory / SAFETENSORS_INDEX,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))},
    )


def to_texts(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of `path` as safetensors holds them, text to text: others as JSON, and which ones these are.

    Raises:
        UnsupportedError: metadata that have the key under which that is said.
    """
    if JSON_KEYS in metadata:
        raise UnsupportedError(
            f"{path}: metadata key {JSON_KEYS!r} would say in safetensors which texts are JSON: "
            f"apr stamp {JSON_KEYS}=null removes it",
            path=path,
        )
    others = [key for key, value in metadata.items() if not isinstance(value, str)]
    said = {JSON_KEYS: json.dumps(others, ensure_ascii=False)} if others else {}
    return as_texts(metadata) | said


def _check(path: Path, spec: TensorSpec) -> None:
    if spec.name == METADATA:
        raise UnsupportedError(
            f"{path}: safetensors holds no tensor named {METADATA}", path=path, tensor=spec.name
        )
    if spec.dtype not in _NAMES:
        raise UnsupportedError(
            f"{path}: {spec.name} is {spec.dtype}, which safetensors does not hold",
            path=path,
            tensor=spec.name,
        )

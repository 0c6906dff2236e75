"""Write safetensors files chunk by chunk, with the bytes that the safetensors package would write.

The package writes from memory, and a conversion must not hold a whole tensor there.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from apr.compat.text_metadata import as_texts
from apr.convert.from_safetensors import JSON_KEYS, METADATA
from apr.convert.plan import SAFETENSORS_INDEX
from apr.errors import UnsupportedError
from apr.files import replacing, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from apr.container.save import TensorSpec
    from apr.convert.stream import TensorStream

# The package sorts tensors by this order of dtypes, then by name: wide dtypes first, so that all are aligned.
_DTYPE_ORDER = (
    *("u64", "i64", "f64", "c64", "f32", "u32", "i32", "bf16", "f16", "u16", "i16"),
    *("f8_e5m2fnuz", "f8_e4m3fnuz", "f8_e8m0", "f8_e4m3", "f8_e5m2", "i8", "u8"),
    *("f6_e3m2", "f6_e2m3", "f4", "bool"),
)


def write(path: Path, tensors: Sequence[TensorStream], texts: Mapping[str, str]) -> None:
    """Write a file atomically, with the bytes that the safetensors package writes for the same tensors.

    Args:
        path: the file.
        tensors: the tensors, in any order.
        texts: the metadata.

    Raises:
        UnsupportedError: safetensors cannot store a tensor because of its dtype or its name.
        OSError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    for tensor in tensors:
        _check(path, tensor.spec)
    ordered = sorted(tensors, key=lambda tensor: (_DTYPE_ORDER.index(tensor.spec.dtype), tensor.spec.name))
    header: dict[str, Any] = {METADATA: dict(texts)} if texts else {}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.spec.name] = {
            "dtype": tensor.spec.dtype.upper(),
            "shape": list(tensor.spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the package aligns the values to 8 bytes
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            for chunk in tensor.byte_chunks():
                file.write(chunk.data)


def write_several(
    directory: Path,
    shards: Sequence[Sequence[TensorStream]],
    first_texts: Mapping[str, str],
    every_texts: Mapping[str, str],
) -> None:
    """Write a model as several files and their index, with transformers' file names.

    Args:
        directory: an existing directory.
        shards: the tensors of each file.
        first_texts: metadata of the first file only.
        every_texts: metadata of every file.

    Raises:
        UnsupportedError: safetensors cannot store a tensor because of its dtype or its name.
        OSError: a file cannot be written.
    """
    weight_map: dict[str, str] = {}
    for n, shard in enumerate(shards, 1):
        name = f"model-{n:05}-of-{len(shards):05}.safetensors"
        texts = {**every_texts, **first_texts} if n == 1 else every_texts
        write(directory / name, shard, texts)
        weight_map |= {tensor.spec.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / SAFETENSORS_INDEX, index)


def to_texts(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata in the form of safetensors, text to text.

    Other values become JSON, and one more key lists those that did, so that `from_safetensors.from_texts` can
    restore them.

    Args:
        path: the file that has the metadata, for errors.
        metadata: any JSON values.

    Raises:
        UnsupportedError: the metadata already use that key.
    """
    if JSON_KEYS in metadata:
        raise UnsupportedError(
            f"{path}: the metadata key {JSON_KEYS!r} is reserved in safetensors files; "
            f"remove it with apr stamp {JSON_KEYS}=null",
            path=path,
        )
    json_keys = [key for key, value in metadata.items() if not isinstance(value, str)]
    texts = as_texts(metadata)
    if json_keys:
        texts[JSON_KEYS] = json.dumps(json_keys, ensure_ascii=False)
    return texts


def _check(path: Path, spec: TensorSpec) -> None:
    if spec.name == METADATA:
        raise UnsupportedError(
            f"{path}: safetensors cannot store a tensor named {METADATA}", path=path, tensor=spec.name
        )
    if spec.dtype not in _DTYPE_ORDER:
        raise UnsupportedError(
            f"{path}: safetensors cannot store {spec.name}, which has dtype {spec.dtype}",
            path=path,
            tensor=spec.name,
        )

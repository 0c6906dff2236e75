"""Open GGUF files of any architecture."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.container.header import TensorInfo
from apr.container.report import Check
from apr.errors import UnsupportedError
from apr.formats.foreign import ForeignFile, StoredTensor, any_range, no_checksum
from apr.gguf.reader import GgufTensor, is_readable
from apr.gguf.structure import one_number, read_structure
from apr.plurals import counted

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import ReaderTensor
    from numpy.typing import NDArray

    from apr.gguf.structure import Structure

FORM = "GGUF"
_INTEGERS: dict[str, np.dtype[Any]] = {
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
# The sizes of a model, and GGUF's keys for them, which every architecture has after its own name.
_SIZES = {
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "hidden_size": "embedding_length",
    "vocab_size": "vocab_size",
}


def open_gguf(path: Path, shown: str) -> ForeignFile:
    """Open a file.

    Args:
        path: the file.
        shown: the path that the user gave.

    Raises:
        FormatError: the file is not a valid GGUF file.
        TruncatedError: the file ends before its tensors do.
        OSError: the file cannot be read.
    """
    structure = read_structure(path)
    fields = structure.fields
    return ForeignFile(
        shown,
        form=FORM,
        version=str(structure.version),
        files={str(path): structure.size},
        # The package lists the counts of the header among the keys.
        metadata={key: value for key, value in fields.items() if not key.startswith("GGUF.")},
        config=_config(fields),
        tensors=[_raw(structure, source) for source in structure.tensors],
        checks=_checks(structure),
    )


def stored_tensor(tensor: GgufTensor) -> StoredTensor:
    """Return a tensor of a reader, under the reader's name and in its order of rows."""
    flat = any_range(partial(_values, tensor), tensor.unit, prod(tensor.shape))
    return StoredTensor(_info(tensor.name, tensor.source, tensor.shape), str(tensor.path), flat)


def _raw(structure: Structure, source: ReaderTensor) -> StoredTensor:
    """Return a tensor as the file stores it: under its own name, without reordering rows."""
    shape = tuple(int(n) for n in reversed(source.shape))  # GGUF lists the fastest dimension first
    kind = source.tensor_type.name
    if not structure.little_endian:
        return _unread(structure.path, source, shape)
    dtype = kind.lower() if kind in {"F32", "F16", "BF16", "F64"} else "f32"
    return stored_tensor(GgufTensor(source.name, dtype, shape, structure.path, source, None))


def _unread(path: Path, source: ReaderTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Return a tensor of a big-endian file, which can be listed but not read."""

    def flat(start: int, stop: int) -> NDArray[Any]:
        raise UnsupportedError(
            f"{path}: {source.name}: the values of a big-endian GGUF file are not read (asked for {start} to "
            f"{stop})",
            path=path,
            tensor=source.name,
        )

    return StoredTensor(_info(source.name, source, shape), str(path), flat)


def _info(name: str, source: ReaderTensor, shape: tuple[int, ...]) -> TensorInfo:
    kind = source.tensor_type.name.lower()
    return TensorInfo(name, kind, shape, int(source.n_bytes), int(source.data_offset))


def _values(tensor: GgufTensor, start: int, stop: int) -> NDArray[Any]:
    kind = tensor.source.tensor_type
    if kind.name in _INTEGERS:
        return tensor.stored(start, stop).view(_INTEGERS[kind.name])
    if not is_readable(kind):
        raise UnsupportedError(
            f"{tensor.path}: {tensor.source.name} has the GGML type {kind.name}, whose values are not read",
            path=tensor.path,
            tensor=tensor.source.name,
        )
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be NaN
        return tensor.values(start, stop)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the architecture and its sizes under the names that `.apr` files have."""
    architecture = fields.get("general.architecture")
    config: dict[str, Any] = {"architecture": architecture}
    for name, key in _SIZES.items():
        # Some architectures list a number for each layer. If they differ, there is no one size.
        value = one_number(fields.get(f"{architecture}.{key}"))
        if type(value) is int:
            config[name] = value
    vocabulary = fields.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(vocabulary, list):
        config["vocab_size"] = len(vocabulary)
    return config


def _checks(structure: Structure) -> list[Check]:
    order = "little-endian" if structure.little_endian else "big-endian"
    tensors = counted(len(structure.tensors), "tensor")
    data = structure.data_end - structure.data_offset
    checks = [
        Check("magic", True, f"GGUF version {structure.version}, {order}"),
        # The package lists three counts of the header among the keys.
        Check("metadata", True, f"{len(structure.fields) - 3} keys"),
        Check("tensor index", True, f"{tensors}, every type and dimension is valid"),
        Check(
            "tensor data",
            True,
            f"{data:,} bytes, aligned to {structure.alignment}, all tensors in bounds, none overlap, no gap",
        ),
    ]
    left = structure.size - structure.data_end
    if left >= structure.alignment:
        # llama.cpp reads such a file, so it is not wrong; but nothing describes these bytes.
        checks.append(Check("end", None, f"{left:,} bytes follow the last tensor"))
    return [*checks, no_checksum(FORM)]

"""Writing an `.apr` file: as a whole or not at all, the same bytes for the same contents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from apr._core import Writer
from apr.container.header import Flags
from apr.container.metadata import HF_TOKENIZER, SHARDING, VOCABULARY, encode
from apr.container.quantized import Quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from typing import TypeGuard

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    # NumPy says that its arrays are buffers only from Python 3.12 on.
    _Bytes: TypeAlias = Buffer | NDArray[Any]

# Metadata that a flag of the header announces.
SAID_BY_FLAG = {VOCABULARY: Flags.HAS_VOCAB, HF_TOKENIZER: Flags.HAS_VOCAB, SHARDING: Flags.SHARDED}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: `dtype` as in the format's table, `shape` empty for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def save(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    path: str | PathLike[str],
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write tensors and metadata to `path`, replacing what is there only once the new file is whole.

    A file that is mapped, even one that the tensors lie in, keeps its values. Two saves of the same
    contents are the same bytes.

    Args:
        tensors: names to torch tensors (any device), NumPy arrays (bfloat16 through ml_dtypes), or
            `apr.Quantized`.
        path: the file.
        metadata: written as given, key order kept; at most 16 MiB of JSON.

    Raises:
        TypeError: a value that is no tensor, or of a dtype that the format lacks; metadata that JSON has
            no form for.
        ValueError: a name with a lone surrogate.
        AprError: a name or shape that the format cannot hold.
        OSError: the file cannot be written; what was at `path` is as it was, unless the message says that the
            new file is there but its directory was not flushed.
    """
    _save(tensors, os.fspath(path), metadata)


def to_bytes(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """The bytes of the file that `save` would write; arguments and errors as there."""
    return _save(tensors, None, metadata) or b""


def _save(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    path: str | PathLike[str] | None,
    metadata: Mapping[str, object] | None,
) -> bytes | None:
    values = dict(tensors)
    specs = [spec_of(name, value) for name, value in values.items()]
    return write(path, metadata, specs, lambda spec: bytes_of(values[spec.name]))


def write(
    path: str | PathLike[str] | None,
    metadata: Mapping[str, object] | None,
    specs: Sequence[TensorSpec],
    values: Callable[[TensorSpec], _Bytes | Iterator[_Bytes]],
) -> bytes | None:
    """Write a file whose sizes are known up front, holding the values of one tensor at a time.

    Args:
        path: the file; replaced only once the new one is whole. None: the bytes are returned instead.
        metadata: written as given, key order kept.
        specs: the tensors, in any order.
        values: gives one tensor's bytes, C-contiguous, or an iterator over parts of them; called once for
            each tensor, in name order.

    Raises:
        AprError: a name, shape or dtype that the format cannot hold, or values of the wrong size.
        OSError: the file cannot be written; what was at `path` is as it was, unless the message says that the
            new file is there but its directory was not flushed.
    """
    rows = [(spec.name, spec.dtype, spec.shape) for spec in specs]
    writer = Writer(path, rows, encode(metadata), flags(metadata or {}))
    try:
        for spec in sorted(specs, key=lambda spec: spec.name):
            given = values(spec)
            for part in given if isinstance(given, Iterator) else (given,):
                writer.part(cast("Buffer", part))
            writer.end()
        return writer.finish()
    finally:
        writer.abort()


def flags(metadata: Mapping[str, object]) -> Flags:
    """The header's flags that follow from the metadata."""
    said = (flag for key, flag in SAID_BY_FLAG.items() if metadata.get(key) is not None)
    return reduce(or_, said, Flags(0))


def spec_of(name: str, value: object) -> TensorSpec:
    """What a value is stored as.

    Raises:
        TypeError: no tensor, or of a dtype that the format lacks; the message names it.
    """
    if not isinstance(name, str):
        raise TypeError(f"tensor name {name!r} is no string")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"tensor name {name!r}: a lone surrogate has no UTF-8 form") from None
    if isinstance(value, Quantized):
        return TensorSpec(name, value.dtype, value.shape)
    if _is_torch(value):
        return TensorSpec(name, _torch_dtype(name, value), tuple(value.shape))
    import numpy as np

    from apr.container.dtypes import NAMES

    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(
            f"tensor {name!r} is {type(value).__name__}, not a torch tensor, NumPy array or apr.Quantized"
        )
    dtype = NAMES.get(value.dtype.newbyteorder("="))
    if dtype is None:
        raise TypeError(f"tensor {name!r} has dtype {value.dtype}; {_held()}")
    return TensorSpec(name, dtype, value.shape)


def _torch_dtype(name: str, value: torch.Tensor) -> str:
    import torch

    from apr.container.torch_dtypes import NAMES

    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"tensor {name!r} has layout {value.layout}: make it dense first")
    if value.is_meta:
        raise TypeError(f"tensor {name!r} has no values: it is on the meta device")
    dtype = NAMES.get(value.dtype)
    if dtype is None:
        raise TypeError(f"tensor {name!r} has dtype {value.dtype}; {_held()}")
    return dtype


def _held() -> str:
    from apr.container.dtypes import NUMPY

    return f"an .apr file holds {', '.join(NUMPY)}: convert it first"


def bytes_of(value: torch.Tensor | np.ndarray | Quantized) -> Buffer:
    """The bytes that are stored: little-endian, C-contiguous; a copy only where the value lies otherwise."""
    if isinstance(value, Quantized):
        return value.data
    import numpy as np

    if not isinstance(value, (np.ndarray, np.generic)):
        import torch

        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        return plain.view(-1).view(torch.uint8).numpy().data
    native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    return native.reshape(-1).view(np.uint8).data


def _is_torch(value: object) -> TypeGuard[torch.Tensor]:
    # A torch tensor exists only where torch was imported.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)

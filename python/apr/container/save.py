"""Write an `.apr` file: completely or not at all, with the same bytes for the same contents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from apr._core import Writer
from apr.container.byte_dtypes import stored_as, with_dtypes
from apr.container.header import Flags
from apr.container.metadata import HF_TOKENIZER, SHARDING, VOCABULARY, encode
from apr.container.quantized import Quantized
from apr.path_arguments import as_path, looks_like_path, warn_of_foreign_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    # NumPy declares its arrays as buffers only from Python 3.12 on.
    _Bytes: TypeAlias = Buffer | NDArray[Any]

# The flags of the header that announce a metadata key.
FLAG_OF_KEY = {VOCABULARY: Flags.HAS_VOCAB, HF_TOKENIZER: Flags.HAS_VOCAB, SHARDING: Flags.SHARDED}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write.

    Attributes:
        name: the tensor's name.
        dtype: the stored dtype as the format spells it, such as "bf16" or "q4_k".
        shape: the dimensions, empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def save(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    path: str | PathLike[str],
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write tensors and metadata to a file, which replaces an existing one only once it is complete.

    The contents are always .apr. A name of another format, such as model.safetensors, gets a warning. The
    existing file may be open, and may even hold the tensors that are saved: it keeps its values. Two
    saves of the same contents write the same bytes.

    Args:
        tensors: torch tensors (any device), NumPy arrays (bfloat16 through ml_dtypes) or `apr.Quantized`,
            by name.
        path: the file.
        metadata: any JSON values by name, written in this order; at most 16 MiB of JSON.

    Raises:
        TypeError: a value is not a tensor, has no values or a dtype that is not known; metadata that JSON
            cannot represent; a path of another type.
        ValueError: a name contains a lone surrogate; metadata contain NaN or an infinity.
        AprError: a name or shape that the format does not allow.
        OSError: the file cannot be written. An existing file is unchanged, unless the message says that the
            new file is in place but its directory was not flushed.
    """
    order = "save(tensors, path)"
    if not isinstance(tensors, Mapping):
        hint = f"; the order is {order}" if looks_like_path(tensors) else ""
        if hasattr(tensors, "state_dict"):
            hint = "; pass its state_dict(), or use apr.torch.save_model"
        raise TypeError(
            f"tensors must be a mapping from names to tensors, not {type(tensors).__name__}{hint}"
        )
    _save(tensors, as_path(path, order=order, is_written=True), metadata)


def to_bytes(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """Return the bytes of the file that `save` would write.

    Args:
        tensors: torch tensors (any device), NumPy arrays (bfloat16 through ml_dtypes) or `apr.Quantized`,
            by name.
        metadata: any JSON values by name, written in this order; at most 16 MiB of JSON.

    Raises:
        TypeError: a value is not a tensor or has a dtype that the format does not have; metadata that JSON
            cannot represent.
        ValueError: a name contains a lone surrogate; metadata contain NaN or an infinity.
        AprError: a name or shape that the format does not allow.
    """
    return _save(tensors, None, metadata) or b""


def _save(
    tensors: Mapping[str, torch.Tensor | np.ndarray | Quantized],
    path: str | PathLike[str] | None,
    metadata: Mapping[str, object] | None,
) -> bytes | None:
    # A copy of the mapping: it may be an open file, whose tensors are read again by name.
    values = dict(tensors)
    specs = [spec_of(name, value) for name, value in values.items()]
    return write(path, metadata, specs, lambda spec: bytes_of(values[spec.name]))


def write(
    path: str | PathLike[str] | None,
    metadata: Mapping[str, object] | None,
    specs: Sequence[TensorSpec],
    values: Callable[[TensorSpec], _Bytes | Iterator[_Bytes]],
) -> bytes | None:
    """Write a file whose tensors are known up front, holding the values of one tensor at a time.

    Args:
        path: the file, which replaces an existing one only once it is complete; None returns its bytes.
        metadata: any JSON values by name, written in this order.
        specs: the tensors, in any order.
        values: returns the bytes of a tensor, C-contiguous, or an iterator over parts of them. It is called
            once for each tensor, in name order.

    Returns:
        The bytes if `path` is None, else None.

    Raises:
        AprError: a name, shape or dtype that the format does not allow, or values of the wrong size.
        OSError: the file cannot be written. An existing file is unchanged, unless the message says that the
            new file is in place but its directory was not flushed.
    """
    # All sizes are known, so that data go straight to their place: `Writer`, which learns them one by one,
    # needs the space twice for a while.
    given = [(spec.name, spec.dtype, spec.shape) for spec in specs]
    rows = [(name, *stored_as(dtype, shape)) for name, dtype, shape in given]
    metadata = with_dtypes(metadata, given)
    if path is not None:
        warn_of_foreign_name(os.fspath(path))
    writer = Writer(path, rows, encode(metadata), flags_of(metadata))
    try:
        # In name order, so that the order of the mapping does not change the bytes.
        for spec in sorted(specs, key=lambda spec: spec.name):
            stored = values(spec)
            for part in stored if isinstance(stored, Iterator) else (stored,):
                writer.part(cast("Buffer", part))
            writer.end()
        return writer.finish()
    finally:
        writer.abort()  # does nothing after `finish`


def flags_of(metadata: Mapping[str, object]) -> Flags:
    """Return the header's flags that announce the metadata."""
    flags = Flags(0)
    for key, flag in FLAG_OF_KEY.items():
        if metadata.get(key) is not None:
            flags |= flag
    return flags


def spec_of(name: str, value: object) -> TensorSpec:
    """Return the name, dtype and shape that a value is stored with.

    Raises:
        TypeError: the value is not a tensor or has a dtype that the format does not have.
        ValueError: the name contains a lone surrogate.
    """
    if not isinstance(name, str):
        raise TypeError(f"tensor name {name!r} is not a string")
    try:
        # A lone surrogate is a valid str in Python, but names in the file are UTF-8.
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"tensor name {name!r}: a lone surrogate cannot be encoded as UTF-8") from None
    if isinstance(value, Quantized):
        return TensorSpec(name, value.dtype, value.shape)
    torch = sys.modules.get("torch")  # a torch tensor exists only if torch was imported
    if torch is not None and isinstance(value, torch.Tensor):
        return _spec_of_torch(name, value)
    import numpy as np

    from apr.container.dtypes import NAMES, refuse_masked

    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(
            f"tensor {name!r} must be a torch tensor, NumPy array or apr.Quantized, "
            f"not {type(value).__name__}"
        )
    refuse_masked(value, f"tensor {name!r}")
    # Big-endian arrays are stored too; their bytes are swapped when they are written.
    dtype = NAMES.get(value.dtype.newbyteorder("="))
    if dtype is None:
        raise _unsupported_dtype(name, value.dtype)
    return TensorSpec(name, dtype, value.shape)


def _spec_of_torch(name: str, value: torch.Tensor) -> TensorSpec:
    from apr.container.torch_dtypes import NAMES
    from apr.container.torch_values import plain

    value = plain(value, name)
    dtype = NAMES.get(value.dtype)
    if dtype is None:
        raise _unsupported_dtype(name, value.dtype)
    shape = tuple(value.shape)
    if dtype == "f4":  # torch counts pairs of values
        if not shape:
            raise TypeError(f"tensor {name!r} is a pair of f4 values without a dimension; reshape it to [1]")
        shape = (*shape[:-1], shape[-1] * 2)
    return TensorSpec(name, dtype, shape)


def _unsupported_dtype(name: str, dtype: object) -> TypeError:
    from apr.container.dtypes import NUMPY

    return TypeError(
        f"tensor {name!r} has the unsupported dtype {dtype}; convert it to one of {', '.join(NUMPY)}"
    )


def bytes_of(value: torch.Tensor | np.ndarray | Quantized) -> Buffer:
    """Return the bytes that are stored: little-endian, C-contiguous, copied only if the value is not."""
    if isinstance(value, Quantized):
        return value.data
    import numpy as np

    if not isinstance(value, (np.ndarray, np.generic)):
        from apr.container.torch_values import plain, stored_values

        # Through bytes: NumPy has no bfloat16.
        return stored_values(plain(value)).numpy().data
    native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    # Through bytes: ml_dtypes' bfloat16 does not have the buffer protocol.
    return native.reshape(-1).view(np.uint8).data

"""The functions of `safetensors.numpy`, over `.apr` files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr.compat.from_bytes import opened_bytes
from apr.compat.safe_open import safe_open
from apr.compat.text_metadata import checked_texts
from apr.container.save import save as save_apr
from apr.container.save import to_bytes
from apr.path_arguments import as_path

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray


def save_file(
    tensor_dict: Mapping[str, NDArray[Any]],
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays of any layout to an `.apr` file, atomically and with checksums.

    Args:
        tensor_dict: arrays by name (bfloat16 through ml_dtypes).
        filename: the file; an existing one is replaced only once the new one is complete.
        metadata: strings by name; `apr.save` accepts any JSON value.

    Raises:
        TypeError: a value that is not an array or has a dtype that the format does not have; metadata other
            than strings.
        AprError: a name or shape that the format does not allow.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    as_path(filename, "filename", "save_file(tensor_dict, filename)", is_written=True)
    _check(tensor_dict)
    save_apr(tensor_dict, filename, checked_texts(metadata))


def load_file(
    filename: str | PathLike[str], *, backend: Literal["mmap", "pread"] = "mmap"
) -> dict[str, NDArray[Any]]:
    """Return every tensor of a file as an array. Quantized tensors are dequantized to float32.

    Args:
        filename: the file.
        backend: "mmap" returns arrays that use the mapped pages of the file (copy-on-write), "pread" reads
            them into new memory.

    Raises:
        AprError: the file is damaged, cut short, or of an unsupported kind.
        ValueError: an unknown backend.
        OSError: the file cannot be opened or read.
    """
    with safe_open(filename, "np", backend=backend) as file:
        tensors: dict[str, NDArray[Any]] = file.get_tensors()
        return tensors


def save(tensor_dict: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of the file that `save_file` would write.

    Args:
        tensor_dict: arrays by name (bfloat16 through ml_dtypes).
        metadata: strings by name.

    Raises:
        TypeError: a value that is not an array or has a dtype that the format does not have; metadata other
            than strings.
        AprError: a name or shape that the format does not allow.
    """
    _check(tensor_dict)
    return to_bytes(tensor_dict, checked_texts(metadata))


def load(data: bytes) -> dict[str, NDArray[Any]]:
    """Return every tensor of a file that is given as its bytes.

    Raises:
        AprError: the bytes are damaged, cut short, or of an unsupported kind.
    """
    with opened_bytes(data) as file:
        return {name: file.numpy(name) for name in file}


def _check(tensors: Mapping[str, NDArray[Any]]) -> None:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"expected a mapping from names to arrays, not {type(tensors).__name__}")
    for name, value in tensors.items():
        # np.generic too: NumPy's own functions return scalars where an array would have no dimension.
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"tensor {name!r} must be a NumPy array, not {type(value).__name__}")

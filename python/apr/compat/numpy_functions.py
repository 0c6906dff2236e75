"""safetensors' functions for NumPy over `.apr` files: change the import, keep the script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr.compat.from_bytes import opened
from apr.compat.safe_open import safe_open
from apr.compat.text_metadata import texts
from apr.container.save import save as _save
from apr.container.save import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from numpy.typing import NDArray

__all__ = ["load", "load_file", "save", "save_file"]


def save_file(
    tensor_dict: Mapping[str, NDArray[Any]],
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays of any layout as `.apr`, atomically and with checksums.

    Args:
        tensor_dict: names to arrays (bfloat16 through ml_dtypes).
        filename: the file.
        metadata: text to text; `apr.save` takes any JSON.

    Raises:
        TypeError: a value that is no array, or of a dtype that the format lacks; metadata other than text.
        AprError: a name or shape that the format cannot hold.
        OSError: the file cannot be written; what was there is as it was.
    """
    _save(_checked(tensor_dict), filename, texts(metadata))


def load_file(
    filename: str | PathLike[str], *, backend: Literal["mmap", "pread"] = "mmap"
) -> dict[str, NDArray[Any]]:
    """Every tensor of a file as an array; quantized ones as float32.

    Args:
        filename: the file.
        backend: "mmap" gives arrays on the mapped pages (copy-on-write), "pread" in memory of their own.

    Raises:
        AprError: the file is damaged, cut off, or of a kind that is not read.
        OSError: as `open` would.
    """
    with safe_open(filename, "np", backend=backend) as file:
        tensors: dict[str, NDArray[Any]] = file.get_tensors()
        return tensors


def save(tensor_dict: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes that `save_file` would write; arguments and errors as there."""
    return to_bytes(_checked(tensor_dict), texts(metadata))


def load(data: bytes) -> dict[str, NDArray[Any]]:
    """Every tensor of a file that is given as its bytes.

    Raises:
        AprError: as `load_file`.
    """
    with opened(data) as file:
        return {name: file.numpy(name) for name in file}


def _checked(tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    for name, value in tensors.items():
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"tensor {name!r} is {type(value).__name__}, not a NumPy array")
    return tensors

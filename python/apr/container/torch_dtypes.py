"""The torch dtype of each dtype of the format, and of those that are stored as bytes. Imports torch."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from apr.container.byte_dtypes import BITS
from apr.errors import UnsupportedError

if TYPE_CHECKING:
    from apr.container.header import TensorInfo

TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "i16": torch.int16,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "f8_e8m0": torch.float8_e8m0fnu,
    "f8_e4m3fnuz": torch.float8_e4m3fnuz,
    "f8_e5m2fnuz": torch.float8_e5m2fnuz,
    "c64": torch.complex64,
    # Its values are pairs: the last dimension of such a tensor is half of the format's.
    "f4": torch.float4_e2m1fn_x2,
}
NAMES = {dtype: name for name, dtype in TORCH.items()}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialized tensor in memory from NumPy."""
    if 0 in shape:  # torch cannot view zero bytes as another dtype
        return torch.empty(shape, dtype=dtype)
    # NumPy asks for huge pages and torch does not: filling them takes a third of the time.
    memory = np.empty(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


def check_torch_has(path: str, info: TensorInfo) -> None:
    """Refuse a tensor that torch cannot represent.

    Raises:
        UnsupportedError: torch does not have the dtype, or not with this shape.
    """
    half_a_pair = info.dtype == "f4" and (not info.shape or info.shape[-1] % 2)
    if info.dtype in BITS and (info.dtype not in TORCH or half_a_pair):
        raise UnsupportedError(
            f"{path}: tensor {info.name!r} has dtype {info.dtype} {list(info.shape)}, which torch does not "
            "have; read its bytes with f.raw(name)",
            path=path,
            tensor=info.name,
        )


def of_bytes(values: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """Return the values of a tensor that is stored as bytes, in the memory of `values`, its bytes."""
    shape = info.shape
    if info.dtype == "f4":
        shape = (*shape[:-1], shape[-1] // 2)
    if not info.nbytes:
        return torch.empty(shape, dtype=TORCH[info.dtype], device=values.device)
    return values.view(-1).view(TORCH[info.dtype]).view(shape)

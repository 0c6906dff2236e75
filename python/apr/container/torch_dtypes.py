"""The torch dtype of each dtype of the format. Importing this module imports torch."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "i8": torch.int8,
    "u8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in TORCH.items()}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialized tensor in memory from NumPy."""
    if 0 in shape:  # torch cannot view zero bytes as another dtype
        return torch.empty(shape, dtype=dtype)
    # NumPy asks for huge pages and torch does not: filling them takes a third of the time.
    memory = np.empty(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)

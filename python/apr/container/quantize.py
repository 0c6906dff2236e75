"""Values to APR's own quantized pair, byte for byte as the ecosystem's importer stores them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import numpy as np

from apr import _core
from apr.container.quantized import Quantized

if TYPE_CHECKING:
    import torch


def quantize(tensor: torch.Tensor | np.ndarray, dtype: Literal["q8", "q4"]) -> Quantized:
    """A tensor's values quantized, for `apr.save` and `Writer.add`.

    q8 keeps one float32 scale, the largest magnitude over 127, and an int8 for each value: no value is off
    by more than half the scale. q4 keeps a float16 scale, the largest magnitude over 7, for each 32 values
    in row-major order, and four bits for each of them; of 32 values whose magnitudes are all below 0.0004
    nothing is left, because readers take a subnormal scale for zero.

    Args:
        tensor: floating point, any shape; torch (any device) or NumPy (bfloat16 through ml_dtypes).
        dtype: "q8" or "q4".

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another dtype; a value that is NaN or infinite, or above 458,528 for q4.
    """
    values = _float32(tensor)
    return Quantized(
        dtype, values.shape, _core.quantize(dtype, np.ascontiguousarray(values).reshape(-1).data)
    )


def _float32(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    torch = sys.modules.get("torch")  # a torch tensor exists only where torch was imported
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.is_floating_point():
            values: np.ndarray = tensor.detach().to("cpu", torch.float32).numpy()
            return values
    elif isinstance(tensor, np.ndarray) and (tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"):
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as an infinity
            return tensor.astype(np.float32)
    raise TypeError(
        f"{getattr(tensor, 'dtype', type(tensor).__name__)}: only floating-point tensors are quantized"
    )

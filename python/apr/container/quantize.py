"""Quantization to APR's own dtypes q8 and q4, with the same bytes as the ecosystem's importer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import numpy as np

from apr import _core
from apr.container.dtypes import refuse_masked
from apr.container.quantized import Quantized

if TYPE_CHECKING:
    import torch


def quantize(tensor: torch.Tensor | np.ndarray, dtype: Literal["q8", "q4"]) -> Quantized:
    """Quantize the values of a tensor, for `apr.save` and `Writer.add`.

    q8 stores one float32 scale, the largest magnitude divided by 127, and an int8 for each value. No value
    changes by more than half the scale.

    q4 stores a float16 scale, the largest magnitude divided by 7, for each 32 values in row-major order, and
    four bits for each value. Blocks whose magnitudes are all below 0.0004 become zero, because readers treat
    a subnormal scale as zero.

    Args:
        tensor: floating-point values of any shape: torch (any device) or NumPy (bfloat16 through ml_dtypes).
        dtype: "q8" or "q4".

    Raises:
        TypeError: the tensor is not floating-point.
        ValueError: another dtype; a value is NaN, infinite, or (for q4) above 458,528.
    """
    refuse_masked(tensor, "the array")
    values = _as_float32(tensor)
    flat = np.ascontiguousarray(values).reshape(-1)  # which makes a vector of a scalar
    return Quantized(dtype, values.shape, _core.quantize(dtype, flat.data))


def _as_float32(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    torch = sys.modules.get("torch")  # a torch tensor exists only if torch was imported
    if torch is not None and isinstance(tensor, torch.Tensor):
        # Integers are refused: they are indices or masks, which must not be rounded.
        from apr.container.torch_values import plain

        tensor = plain(tensor)
        if tensor.is_floating_point():
            values: np.ndarray = tensor.detach().resolve_neg().to("cpu", torch.float32).numpy()
            return values
    elif isinstance(tensor, np.ndarray) and (tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"):
        with np.errstate(over="ignore"):  # beyond float32 it becomes an infinity, which is refused later
            return tensor.astype(np.float32)
    raise TypeError(
        f"only floating-point tensors can be quantized, not {getattr(tensor, 'dtype', type(tensor).__name__)}"
    )

"""Statistics of a tensor's values, in float64 and without a second copy of the tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Values that are converted to float64 at a time: 8 MB beside the tensor, whatever its size.
_CHUNK = 1 << 20


def stats(values: NDArray[Any]) -> dict[str, float | int | None]:
    """Return statistics of the finite values of a tensor.

    Args:
        values: any shape and any dtype of the format.

    Returns:
        `min`, `max`, `mean`, `std` (of the population; each None if no value is finite, float64 cannot hold
        the result, or the values are complex), `nan` and `inf` (the number of such values).
    """
    lows, highs, total, count, nan, inf = [], [], 0.0, 0, 0, 0
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, and the result None
        for chunk, finite in _chunks(values):
            nan += int(np.isnan(chunk).sum())
            count += finite.size
            inf += int(np.isinf(chunk).sum())
            if finite.size:
                lows.append(finite.min().item())
                highs.append(finite.max().item())
                # Integers too: a sum of int64 may overflow.
                total += float(finite.sum(dtype=np.float64))
        mean = total / count if count else math.nan
        # A second pass: the difference of two large sums would lose the digits of a small deviation.
        squares = sum(float(((finite - mean) ** 2).sum()) for _, finite in _chunks(values))
    return {
        "min": min(lows, default=None),
        "max": max(highs, default=None),
        "mean": mean if math.isfinite(mean) else None,
        "std": math.sqrt(squares / count) if count and math.isfinite(squares) else None,
        "nan": nan,
        "inf": inf,
    }


def _chunks(values: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield the values in chunks, each with its finite values; of complex ones, none."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.dtype.kind in "iu":  # float64 would round the extremes of int64
            yield chunk, chunk
        elif chunk.dtype.kind == "c":
            yield chunk, chunk.real[:0]
        else:
            chunk = chunk.astype(np.float64)
            yield chunk, chunk[np.isfinite(chunk)]

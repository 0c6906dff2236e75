"""Floating-point values in another dtype: rounded once, to nearest even, and never silently to infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from apr.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def narrowed(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return floating-point values rounded to nearest even; those beyond the range become infinities."""
    with np.errstate(over="ignore", invalid="ignore"):  # signaling NaN
        if values.dtype == dtype:
            return values
        if values.dtype == np.float64 and dtype.itemsize < 4:
            return _to_odd(values).astype(dtype)
        return values.astype(np.float32).astype(dtype)


def check_range(name: str, values: NDArray[Any], result: NDArray[Any], dtype: str, advice: str) -> None:
    """Refuse finite values that are not finite in the dtype to which they were converted.

    Args:
        name: the tensor.
        values: the values before.
        result: the values after.
        dtype: the dtype of `result`, as the format spells it.
        advice: what to do, the end of the message.

    Raises:
        WeightsError: a value is beyond the range; the message has the tensor and the value.
    """
    beyond = ~np.isfinite(result)
    if beyond.any() and (beyond := beyond & np.isfinite(values)).any():
        raise WeightsError(beyond_range(name, float(values[beyond][0]), dtype, advice), tensor=name)


def beyond_range(name: str, value: float, dtype: str, advice: str) -> str:
    """Return what is wrong with a tensor that has a value which a dtype cannot hold."""
    return f"{name}: the value {value:g} is beyond the range of {dtype}; {advice}"


def _to_odd(values: NDArray[Any]) -> NDArray[np.float32]:
    """Round float64 to float32 so that rounding again, to a shorter dtype, gives what rounding once gives.

    A value between two neighbors becomes the one whose last bit is odd (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008). The last bit then tells
    on which side of a tie the value was.
    """
    # ml_dtypes converts float64 through float32, and so does torch: 1 + 2**-8 + 2**-40 becomes 1 in bfloat16.
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    even = (nearest.view(np.uint32) & 1) == 0
    off = (back != values) & even & np.isfinite(values)
    towards = np.where(values > back, np.float32(np.inf), np.float32(-np.inf))
    return np.where(off, np.nextafter(nearest, towards), nearest)

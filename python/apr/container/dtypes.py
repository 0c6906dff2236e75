"""The NumPy dtype of each dtype of the format, and of those that are stored as bytes.

Quantized dtypes have none: their values become float32. Nor have f4, f6_e2m3 and f6_e3m2, whose values share
bytes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from apr.container.byte_dtypes import BITS
from apr.errors import UnsupportedError

if TYPE_CHECKING:
    from apr.container.header import TensorInfo

# In the order in which messages list them.
NUMPY: dict[str, np.dtype[np.generic]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    # NumPy itself has no bfloat16.
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "i16": np.dtype(np.int16),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8_e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "c64": np.dtype(np.complex64),
}
# q4 and q8 are APR's own: 18 bytes for 32 values, and one scale with a byte for each value. q4_k and q6_k are
# GGML's: 144 and 210 bytes for 256 values.
QUANTIZED = frozenset({"q4", "q8", "q4_k", "q6_k"})
# Real numbers, of which a conversion may ask for another dtype.
FLOATS = frozenset(
    {"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e8m0", "f8_e4m3fnuz", "f8_e5m2fnuz"}
)
NAMES = {dtype: name for name, dtype in NUMPY.items()}


def refuse_masked(value: object, what: str) -> None:
    """Refuse a masked array: the values under the mask would be stored as if they were valid.

    Raises:
        TypeError: it is a masked array; the message starts with `what`.
    """
    ma = sys.modules.get("numpy.ma")  # a masked array exists only if it was imported
    if ma is not None and isinstance(value, ma.MaskedArray):
        raise TypeError(f"{what} is a masked array; call .filled() first, or use its .data and its .mask")


def check_numpy_has(path: str, info: TensorInfo) -> None:
    """Refuse a tensor that NumPy cannot represent.

    Raises:
        UnsupportedError: neither NumPy nor ml_dtypes has the dtype in the form in which it is stored.
    """
    if info.dtype in BITS and info.dtype not in NUMPY:
        raise UnsupportedError(
            f"{path}: tensor {info.name!r} has dtype {info.dtype}, whose packed values are not read; "
            "read its bytes with f.raw(name)",
            path=path,
            tensor=info.name,
        )

"""The NumPy dtype of each dtype of the format. Quantized ones have none: their values become float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np

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
}
# q4 and q8 are APR's own: 18 bytes for 32 values, and one scale with a byte for each value. q4_k and q6_k are
# GGML's: 144 and 210 bytes for 256 values.
QUANTIZED = frozenset({"q4", "q8", "q4_k", "q6_k"})
NAMES = {dtype: name for name, dtype in NUMPY.items()}

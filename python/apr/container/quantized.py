"""A tensor whose stored bytes are given instead of its values: for dtypes that no array library has."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from apr._core import nbytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Not read from `dtypes`, which needs NumPy.
_DTYPES = ("q4", "q8", "q4_k", "q6_k")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor as it is stored; `apr.save` and `Writer.add` take it in place of values.

    Attributes:
        dtype: "q4", "q8", "q4_k" or "q6_k".
        shape: of the values, empty for a scalar.
        data: the bytes in the format's layout, rows of a 2-D K-quant padded to whole blocks of 256; what is
            given (bytes, memoryview, array; C-contiguous) is kept, not copied, as a read-only memoryview.

    Raises:
        ValueError: another dtype, or bytes that are too many or too few for the shape, as those of a K-quant
            that an old file holds flat, without that padding: it is read, but not written.
        TypeError: data that are no C-contiguous buffer.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Buffer = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not quantized: one of {', '.join(_DTYPES)}")
        shape = tuple(self.shape)
        view = memoryview(self.data)
        # A cast of an empty view with a zero in its shape is refused.
        data = (view.cast("B") if view.nbytes else memoryview(b"")).toreadonly()
        needed = nbytes(self.dtype, shape)
        if data.nbytes != needed:
            said = f"{data.nbytes} bytes given, but {self.dtype} {list(shape)} takes {needed}"
            if len(shape) == 2 and data.nbytes == nbytes(self.dtype, (prod(shape),)):
                said += (
                    ": the flat layout, without padding at the end of each row, is read but not written; "
                    "give the values instead, as f.numpy(name) has them"
                )
            raise ValueError(said)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "data", data)

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return memoryview(self.data).nbytes

    def __reduce__(self) -> tuple[object, ...]:
        return Quantized, (self.dtype, self.shape, bytes(self.data))

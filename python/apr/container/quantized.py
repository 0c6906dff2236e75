"""A quantized tensor that is given by its stored bytes: no array library has such dtypes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from apr._core import nbytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The module `dtypes` has them too, but importing it imports NumPy.
_DTYPES = ("q4", "q8", "q4_k", "q6_k")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor by its stored bytes. `apr.save` and `Writer.add` accept it in place of values.

    Attributes:
        dtype: "q4", "q8", "q4_k" or "q6_k".
        shape: the dimensions of the values, empty for a scalar.
        data: the bytes in the format's layout; rows of a 2-D K-quant are padded to whole blocks of 256
            values. Any C-contiguous buffer is accepted. It is kept as a read-only memoryview, not copied.

    Raises:
        ValueError: the dtype is not quantized, or the number of bytes does not match the shape. A K-quant in
            the flat layout of old files, without padding, is read but not written.
        TypeError: `data` is not a C-contiguous buffer.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Buffer = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not quantized; use one of {', '.join(_DTYPES)}")
        shape = tuple(self.shape)
        view = memoryview(self.data)
        # memoryview refuses to cast a view with a zero in its shape.
        data = (view.cast("B") if view.nbytes else memoryview(b"")).toreadonly()
        expected = nbytes(self.dtype, shape)
        if data.nbytes != expected:
            problem = f"{self.dtype} {list(shape)} takes {expected} bytes, not {data.nbytes}"
            # Old files have K-quants without row padding. The size of the index entry tells which; both
            # layouts can have the same size, so that only one of them is written.
            if len(shape) == 2 and data.nbytes == nbytes(self.dtype, (prod(shape),)):
                problem += (
                    "; the flat layout, without padding at the end of each row, is not written: "
                    "pass the values instead, from f.numpy(name)"
                )
            raise ValueError(problem)
        # The dataclass is frozen, and what was given may be a list or a writable buffer.
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "data", data)

    @property
    def nbytes(self) -> int:
        """The number of stored bytes."""
        return memoryview(self.data).nbytes

    def __reduce__(self) -> tuple[object, ...]:
        return Quantized, (self.dtype, self.shape, bytes(self.data))  # a memoryview cannot be pickled

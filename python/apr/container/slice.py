"""Part of a tensor, read by position: only the rows that are asked for, into memory of their own."""

from __future__ import annotations

from math import prod
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from apr.container.dtypes import NUMPY

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from apr._core import Container
    from apr.container.header import TensorInfo

Index: TypeAlias = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]

# Bytes that are read at a time where columns are left out.
_BLOCK = 32 << 20


class TensorSlice:
    """What `AprFile.slice` gives: `f.slice(name)[5:9, :64]` reads rows 5 to 8 and no others.

    Indices are those of NumPy's basic indexing without new axes: integers, slices with a positive step,
    an ellipsis. What comes back is a copy; of a quantized tensor, the rows' values in float32.
    """

    def __init__(self, container: Container, info: TensorInfo) -> None:
        self._container = container
        self._info = info
        self.shape = info.shape
        self.dtype = info.dtype

    def __getitem__(self, index: Index) -> torch.Tensor:
        """The values under the index as a torch tensor.

        Raises:
            IndexError: too many indices, or one out of range.
            TypeError: an index of another kind.
            TruncatedError: the file was cut short since it was opened.
        """
        import torch

        from apr.container.torch_dtypes import TORCH

        values = self.numpy(index)
        flat = torch.from_numpy(values.reshape(-1).view(np.uint8))
        return flat.view(TORCH.get(self.dtype, torch.float32)).view(values.shape)

    def numpy(self, index: Index = ...) -> NDArray[Any]:
        """The values under the index as a NumPy array (bfloat16 through ml_dtypes); errors as above."""
        first, *others = self._expanded(index) or [slice(None)]
        if not self.shape:
            return self._rows(0, 1).reshape(())
        if not isinstance(first, slice):
            return self._rows(first, first + 1)[(0, *others)].copy()
        start, stop, step = first.indices(self.shape[0])
        wanted = range(start, stop, step)
        if all(other == slice(None) for other in others) and step == 1:
            return self._rows(start, max(start, stop))
        at_once = max(1, _BLOCK // max(1, self._row_bytes * step))
        blocks = [wanted[i : i + at_once] for i in range(0, len(wanted), at_once)] or [range(0)]
        parts = [
            self._rows(b.start, b[-1] + 1 if b else 0)[(slice(None, None, step), *others)] for b in blocks
        ]
        return np.concatenate(parts)

    def flat(self, start: int, stop: int) -> NDArray[Any]:
        """The values from the `start`th to before the `stop`th in row-major order, of one dimension."""
        plain = NUMPY.get(self.dtype)
        values: NDArray[Any] = np.empty(stop - start, plain or np.float32)
        if plain is None:
            self._container.dequantize(self._info.name, start, values.data)
        else:
            at = self._info.offset + start * plain.itemsize
            self._container.read([(at, values.view(np.uint8).data)])
        return values

    def stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes from the `start`th to before the `stop`th."""
        found = np.empty(stop - start, np.uint8)
        self._container.read([(self._info.offset + start, found.data)])
        return found

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * NUMPY.get(self.dtype, NUMPY["f32"]).itemsize

    def _expanded(self, index: Index) -> list[int | slice]:
        """One index for each dimension."""
        given = list(index) if isinstance(index, tuple) else [index]
        for one in given:
            if not isinstance(one, int | slice | EllipsisType | np.integer) or isinstance(one, bool):
                raise TypeError(f"index {one!r}: integers, slices and ... select parts of a stored tensor")
        ellipses = sum(one is ... for one in given)
        left = len(self.shape) - (len(given) - ellipses)
        if left < 0 or ellipses > 1:
            raise IndexError(f"{len(given)} indices for the shape {list(self.shape)}")
        at = next((i for i, one in enumerate(given) if one is ...), len(given))
        filled: list[Any] = [*given[:at], *[slice(None)] * left, *given[at + 1 :]]
        return [self._checked(one, length) for one, length in zip(filled, self.shape, strict=True)]

    def _checked(self, one: int | slice, length: int) -> int | slice:
        """A slice that goes forward, or an index from the front."""
        if isinstance(one, slice):
            if one.step is not None and one.step < 1:
                raise ValueError(f"slices go forward: the step is {one.step}")
            return one
        if not -length <= one < length:
            raise IndexError(f"index {one} is out of range in the shape {list(self.shape)}")
        return int(one) % length

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows from `start` to before `stop`, all their columns."""
        width = prod(self.shape[1:])
        return self.flat(start * width, stop * width).reshape(stop - start, *self.shape[1:])

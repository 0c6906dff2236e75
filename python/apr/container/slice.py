"""Parts of a tensor, read by position: only the rows that are asked for, into new memory."""

from __future__ import annotations

from math import prod
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from apr.container.dtypes import NUMPY, check_numpy_has
from apr.errors import named_extras

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from apr._core import Container
    from apr.container.header import TensorInfo

Index: TypeAlias = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]

# Bytes that are read at a time if columns or rows are left out. It bounds the memory beside the result,
# because a file is read in whole rows.
_BLOCK_BYTES = 32 << 20


class TensorSlice:
    """A stored tensor to index: `f.slice(name)[5:9, :64]` reads rows 5 to 8 and no others.

    Indices are those of NumPy's basic indexing without new axes: integers, slices with a positive step, and
    an ellipsis. The result is a copy. A quantized tensor yields the values of the rows in float32.

    Attributes:
        shape: the dimensions of the whole tensor.
        dtype: the stored dtype as the format spells it.
    """

    def __init__(self, path: str, container: Container, info: TensorInfo) -> None:
        self._path = path
        self._container = container
        self._info = info
        self.shape = info.shape
        self.dtype = info.dtype

    def __getitem__(self, index: Index) -> torch.Tensor:
        """Return the values at the index as a torch tensor.

        Raises:
            IndexError: there are too many indices, or one is out of range.
            TypeError: an index is not an integer, a slice or an ellipsis.
            ValueError: the step of a slice is not positive.
            TruncatedError: the file was cut short since it was opened.
        """
        with named_extras():
            import torch

        from apr.container.torch_dtypes import TORCH

        values = self.numpy(index)
        # Through bytes: torch cannot take ml_dtypes' bfloat16.
        flat = torch.from_numpy(values.reshape(-1).view(np.uint8))
        return flat.view(TORCH.get(self.dtype, torch.float32)).view(values.shape)

    def numpy(self, index: Index = ...) -> NDArray[Any]:
        """Return the values at the index as a NumPy array (bfloat16 through ml_dtypes).

        Raises:
            IndexError: there are too many indices, or one is out of range.
            TypeError: an index is not an integer, a slice or an ellipsis.
            ValueError: the step of a slice is not positive.
            TruncatedError: the file was cut short since it was opened.
        """
        first, *others = self._expand(index) or [slice(None)]
        if not self.shape:
            return self._rows(0, 1).reshape(())
        # A copy, because the columns are cut from a whole row that would otherwise stay in memory.
        if not isinstance(first, slice):
            return self._rows(first, first + 1)[(0, *others)].copy()
        start, stop, step = first.indices(self.shape[0])
        # The rows are consecutive bytes: one read, and no copy afterwards.
        if step == 1 and all(other == slice(None) for other in others):
            return self._rows(start, max(start, stop))
        row_bytes = prod(self.shape[1:]) * NUMPY.get(self.dtype, NUMPY["f32"]).itemsize
        # The step counts too: a block reads the rows that it skips.
        rows_at_a_time = max(1, _BLOCK_BYTES // max(1, row_bytes * step))
        selected = range(start, stop, step)
        blocks = [selected[i : i + rows_at_a_time] for i in range(0, len(selected), rows_at_a_time)]
        parts = [
            self._rows(block.start, block[-1] + 1)[(slice(None, None, step), *others)] for block in blocks
        ]
        if not parts:  # no rows are selected, but the other dimensions still give the shape
            parts = [self._rows(0, 0)[(slice(None), *others)]]
        return np.concatenate(parts)

    def flat(self, start: int, stop: int) -> NDArray[Any]:
        """Return values `start` to `stop` in row-major order, as a one-dimensional array.

        Raises:
            TruncatedError: the file was cut short since it was opened.
            UnsupportedError: a dtype whose values share bytes: f4, f6_e2m3, f6_e3m2.
        """
        # Read by position and not from mapped pages: a file that was cut short is an error here, and not a
        # SIGBUS.
        check_numpy_has(self._path, self._info)
        plain = NUMPY.get(self.dtype)
        values: NDArray[Any] = np.empty(stop - start, plain or np.float32)
        if plain is None:
            self._container.dequantize(self._info.name, start, values.data)
        else:
            offset = self._info.offset + start * plain.itemsize
            self._container.read([(offset, values.view(np.uint8).data)])
        return values

    def stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return stored bytes `start` to `stop`.

        Raises:
            TruncatedError: the file was cut short since it was opened.
        """
        stored = np.empty(stop - start, np.uint8)
        self._container.read([(self._info.offset + start, stored.data)])
        return stored

    def _expand(self, index: Index) -> list[int | slice]:
        """Return one checked index for each dimension: a slice forwards, or a number from the front."""
        given = list(index) if isinstance(index, tuple) else [index]
        for one in given:
            # True is an int, but NumPy takes it for a mask.
            if not isinstance(one, int | slice | EllipsisType | np.integer) or isinstance(one, bool):
                raise TypeError(f"index {one!r} is not supported; use integers, slices or an ellipsis (...)")
        ellipses = sum(one is ... for one in given)
        missing = len(self.shape) - (len(given) - ellipses)
        if missing < 0 or ellipses > 1:
            raise IndexError(f"invalid index for the shape {list(self.shape)}: {len(given)} items")
        position = next((i for i, one in enumerate(given) if one is ...), len(given))
        expanded: list[Any] = [*given[:position], *[slice(None)] * missing, *given[position + 1 :]]
        for dim, (one, length) in enumerate(zip(expanded, self.shape, strict=True)):
            if isinstance(one, slice):
                if one.step is not None and one.step < 1:
                    raise ValueError(f"the step of a slice must be positive, not {one.step}")
            elif -length <= one < length:
                # NumPy's integers become Python's, which do not overflow when they are multiplied to offsets.
                expanded[dim] = int(one) % length
            else:
                raise IndexError(f"index {one} is out of range for the shape {list(self.shape)}")
        return expanded

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop` with all their columns."""
        width = prod(self.shape[1:])
        return self.flat(start * width, stop * width).reshape(stop - start, *self.shape[1:])

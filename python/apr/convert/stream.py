"""A model on its way from one format to another: tensors in stretches of rows, never whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr.container.dtypes import NUMPY
from apr.container.save import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from apr.container.file import AprFile

FloatDtype = Literal["f32", "f16", "bf16"]
_FLOATS = {"f64", "f32", "f16", "bf16"}
# Bytes of float32 that are made at a time.
_STRETCH = 16 << 20


@dataclass(frozen=True)
class Item:
    """A tensor: what it is stored as, and its values."""

    spec: TensorSpec
    parts: Callable[[], Iterator[NDArray[Any]]]
    """Its values in stretches, in row-major order and in `spec.dtype`; of a quantised dtype the bytes."""

    def stored(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of the stretches."""
        for part in self.parts():
            yield np.ascontiguousarray(part).reshape(-1).view(np.uint8)

    def cast(self, dtype: FloatDtype | None) -> Item:
        """The same tensor rounded to a dtype, to nearest even; what is no plain floating point stays."""
        if dtype is None or self.spec.dtype not in _FLOATS or self.spec.dtype == dtype:
            return self

        def rounded() -> Iterator[NDArray[Any]]:
            with np.errstate(over="ignore"):  # what f16 cannot hold becomes an infinity, as everywhere
                for part in self.parts():
                    yield part.astype(np.float32).astype(NUMPY[dtype])

        return Item(replace(self.spec, dtype=dtype), rounded)

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.spec.shape)


@dataclass(frozen=True)
class Model:
    """What a source holds: metadata as .apr has them, and tensors."""

    metadata: dict[str, Any]
    items: list[Item]
    notes: tuple[str, ...] = ()
    """What a user should know about it, a line each."""


def stretches(shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together are a tensor; a number of rows that `multiple` divides at a time."""
    rows = shape[0] if shape else 1
    bytes_of_row = 4 * max(1, prod(shape[1:]))
    step = max(1, _STRETCH // bytes_of_row // multiple) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def from_apr(file: AprFile, name: str) -> Item:
    """A tensor of an .apr file under its name; a quantised one dequantised."""
    rows = file.slice(name)
    dtype = rows.dtype if rows.dtype in NUMPY else "f32"

    def parts() -> Iterator[NDArray[Any]]:
        if not rows.shape:
            yield rows.numpy()
            return
        for start, stop in stretches(rows.shape):
            yield rows.numpy(slice(start, stop))

    return Item(TensorSpec(name, dtype, rows.shape), parts)

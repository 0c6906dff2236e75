"""A model on its way from one format to another: tensors in stretches of values, never whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from apr._core import nbytes
from apr.container.dtypes import NUMPY
from apr.container.save import TensorSpec
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile

# Called with (name, tensors done, tensors in all) before each tensor is read.
OnTensor: TypeAlias = "Callable[[str, int, int], None]"
FloatDtype = Literal["f32", "f16", "bf16"]
_FLOATS = {"f64", "f32", "f16", "bf16"}
# Values that are made at a time: 16 MiB of float32.
_STRETCH = 4 << 20


@dataclass(frozen=True)
class Item:
    """A tensor: what it is stored as, and its values."""

    spec: TensorSpec
    parts: Callable[[], Iterator[NDArray[Any]]]
    """Its values in stretches of any shape, row-major, in `spec.dtype`; of a quantized dtype the bytes."""

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

    def reported(self, n: int, total: int, on_tensor: OnTensor | None) -> Item:
        """The same tensor; `on_tensor` is told before it is read that `n` of `total` are done."""
        if on_tensor is None:
            return self

        def parts() -> Iterator[NDArray[Any]]:
            on_tensor(self.spec.name, n, total)
            yield from self.parts()

        return replace(self, parts=parts)

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.spec.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored in."""
        return nbytes(self.spec.dtype, self.spec.shape)


@dataclass(frozen=True)
class Model:
    """What a source holds: metadata as .apr has them, and tensors."""

    metadata: dict[str, Any]
    items: list[Item]
    notes: tuple[str, ...] = ()
    """What a user should know about it, a line each."""


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FormatError: it holds anything else.
        OSError: as `open` would.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: no JSON ({error})", path=path) from None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: no JSON object", path=path)
    return found


def grouped(items: Sequence[Item], most: int) -> list[list[Item]]:
    """The tensors of each file, in order, none larger than `most` bytes unless one tensor is."""
    groups: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if groups[-1] and size + item.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.nbytes
    return groups


def stretches(values: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges that together are that many values; what `multiple` values belong together stay together.

    Of values and not of rows: a single row may be larger than memory.
    """
    step = max(1, _STRETCH // multiple) * multiple
    for start in range(0, values, step):
        yield start, min(start + step, values)


def stored_in(file: TensorFile, name: str) -> Item:
    """A tensor of an .apr file as it is stored, a quantized one too.

    One that is quantized without the padding of its rows, as old files may be, is dequantized.
    """
    info = file.info(name)
    if info.dtype in NUMPY or nbytes(info.dtype, info.shape) != info.nbytes:
        return from_apr(file, name)
    stored = file.slice(name)

    def parts() -> Iterator[NDArray[Any]]:
        for start, stop in stretches(info.nbytes):
            yield stored.stored(start, stop)

    return Item(TensorSpec(name, info.dtype, info.shape), parts)


def from_apr(file: TensorFile, name: str) -> Item:
    """A tensor of an .apr file under its name; a quantized one dequantized."""
    stored = file.slice(name)
    dtype = stored.dtype if stored.dtype in NUMPY else "f32"

    def parts() -> Iterator[NDArray[Any]]:
        for start, stop in stretches(prod(stored.shape)):
            yield stored.flat(start, stop)

    return Item(TensorSpec(name, dtype, stored.shape), parts)


def same_values(a: Item, b: Item) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if a.spec.shape != b.spec.shape or a.spec.dtype != b.spec.dtype:
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.stored(), b.stored(), strict=True))

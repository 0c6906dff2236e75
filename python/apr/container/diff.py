"""`apr.diff`: compare the metadata, tensors and values of two files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.container.load import load
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from apr.container.slice import TensorSlice

# Values that are compared at a time: 16 MB of float64, whatever the size of the tensor.
_CHUNK = 1 << 20
# Characters of a metadata value that are shown.
_SHOWN = 72


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor that both files have and that differs. Pairs are (first file, second file).

    Attributes:
        name: the tensor's name.
        dtype: the stored dtypes.
        shape: the dimensions; if they differ, no values are compared.
        count: the number of values in the first file's tensor.
        differing: the number of values that differ; None if the shapes differ.
        largest: the largest absolute difference of finite values; None if there is none.
        nonfinite: the number of differing values with a NaN or an infinity on one side.
    """

    name: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    count: int
    differing: int | None
    largest: float | None
    nonfinite: int

    def __str__(self) -> str:
        parts = []
        if self.shape[0] != self.shape[1]:
            parts.append(f"shape {list(self.shape[0])} -> {list(self.shape[1])}")
        if self.dtype[0] != self.dtype[1]:
            parts.append(f"dtype {self.dtype[0]} -> {self.dtype[1]}")
        if self.differing:
            values = f"{self.differing} of {self.count} values differ"
            if self.largest is not None:
                values += f", by at most {self.largest:.6g}"
            if self.nonfinite:
                values += f", {self.nonfinite} of them not finite"
            parts.append(values)
        return f"{self.name}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two files.

    Attributes:
        a: the path of the first file.
        b: the path of the second file.
        atol: the absolute difference of values that was allowed; None if every bit had to be equal.
        added: metadata that only `b` has.
        removed: metadata that only `a` has.
        changed: metadata that differ, as (value in `a`, value in `b`).
        only_in_a: names of tensors that only `a` has.
        only_in_b: names of tensors that only `b` has.
        tensors: the tensors that both have and that differ, in the order of `a`.
        compared: the number of tensors that both have.
    """

    a: str
    b: str
    atol: float | None
    added: dict[str, Any]
    removed: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]
    compared: int

    @property
    def same(self) -> bool:
        """Whether the files have no differences."""
        differences = (self.added, self.removed, self.changed, self.only_in_a, self.only_in_b, self.tensors)
        return not any(differences)

    def to_dict(self) -> dict[str, object]:
        """Return the differences as a dictionary that `json.dumps` accepts."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "atol": self.atol,
            "metadata": {"added": self.added, "removed": self.removed, "changed": self.changed},
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "compared": self.compared,
        }

    def lines(self) -> list[str]:
        """Return the lines that `str` shows: "-" is only in `a`, "+" only in `b`, "~" in both."""
        tolerance = "" if self.atol is None else f" (values within {self.atol:g})"
        if self.same:
            return [f"{self.a} and {self.b} are the same{tolerance} ({counted(self.compared, 'tensor')})"]
        return [
            f"{self.a} and {self.b} differ{tolerance}; common tensors that differ: {len(self.tensors)} of "
            f"{self.compared}",
            *(f"  - metadata {key}: {_short(value)}" for key, value in self.removed.items()),
            *(f"  + metadata {key}: {_short(value)}" for key, value in self.added.items()),
            *(f"  ~ metadata {key}: {_short(a)} -> {_short(b)}" for key, (a, b) in self.changed.items()),
            *(f"  - tensor {name}" for name in self.only_in_a),
            *(f"  + tensor {name}" for name in self.only_in_b),
            *(f"  ~ tensor {tensor}" for tensor in self.tensors),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def diff(a: str | PathLike[str], b: str | PathLike[str], *, atol: float | None = None) -> Diff:
    """Compare two files. Memory does not grow with their size.

    Without `atol`, values of the same dtype are compared bit by bit: a NaN equals a NaN with the same bits,
    and 0.0 differs from -0.0. With `atol`, and between dtypes, values are compared as numbers, and all NaNs
    are equal. Quantized tensors are compared by their float32 values. Metadata are compared as JSON (1 and
    1.0 differ); the order of keys does not matter.

    Args:
        a: the first file.
        b: the second file.
        atol: the absolute difference up to which values count as equal.

    Raises:
        AprError: a file does not open; the error has the path, tensor and byte.
        UnsupportedError: a version 1 file that does not describe its payload as tensors.
        ValueError: `atol` is negative, infinite or NaN.
        OSError: a file cannot be opened or read.
    """
    if atol is not None and not 0 <= atol < inf:
        raise ValueError(f"atol must be a finite, nonnegative number, not {atol}")
    with load(a) as one, load(b) as two:
        # A version 1 file may be opened for its metadata alone; two of those would look equal without a value
        # compared.
        one.require_tensors()
        two.require_tensors()
        both = [name for name in one if name in two]
        compared = [_compare(name, one.slice(name), two.slice(name), atol) for name in both]
        return Diff(
            a=os.fspath(a),
            b=os.fspath(b),
            atol=atol,
            added=_without(two.metadata, one.metadata),
            removed=_without(one.metadata, two.metadata),
            changed=_changed(one.metadata, two.metadata),
            only_in_a=tuple(name for name in one if name not in two),
            only_in_b=tuple(name for name in two if name not in one),
            tensors=tuple(tensor for tensor in compared if tensor is not None),
            compared=len(both),
        )


def _without(metadata: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in others}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (value, b[key])
        for key, value in a.items()
        # As JSON: Python takes 1, 1.0 and true for equal.
        if key in b and json.dumps(value, sort_keys=True) != json.dumps(b[key], sort_keys=True)
    }


def _compare(name: str, a: TensorSlice, b: TensorSlice, atol: float | None) -> TensorDiff | None:
    """Return the differences of a tensor, or None if there are none."""
    dtype, shape, count = (a.dtype, b.dtype), (a.shape, b.shape), prod(a.shape)
    # Values of other shapes have no partners, so there is nothing to count.
    if a.shape != b.shape:
        return TensorDiff(name, dtype, shape, count, None, None, 0)
    differing, nonfinite, largest = 0, 0, None
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        distances = _distances(a.flat(start, stop), b.flat(start, stop), atol)
        finite = distances[np.isfinite(distances)]
        differing += distances.size
        nonfinite += distances.size - finite.size
        if finite.size:
            largest = max(finite.max().item(), largest or 0)
    # Tensors of two dtypes are listed even if all values are equal: the files differ.
    if a.dtype == b.dtype and not differing:
        return None
    return TensorDiff(name, dtype, shape, count, differing, largest, nonfinite)


def _distances(a: NDArray[Any], b: NDArray[Any], atol: float | None) -> NDArray[Any]:
    """Return the absolute differences of the values that differ; not finite where one of the two is not."""
    same_dtype = a.dtype == b.dtype
    # Most chunks of most pairs are equal, and comparing bytes is the fastest way to see it.
    if same_dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
        return np.empty(0)
    if atol is None and same_dtype:
        # As integers: NaN equals itself then, and 0.0 differs from -0.0.
        bits = np.dtype(f"u{a.itemsize}")
        at = a.view(bits) != b.view(bits)
        return _distance(a[at], b[at])
    distance = _distance(a, b)
    equal = distance <= (atol or 0)
    if distance.dtype.kind == "f":
        # The distance of equal infinities, and of any NaN, is NaN.
        equal |= (a == b) | (np.isnan(a) & np.isnan(b))
    return distance[~equal]


def _distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return absolute differences: exact ones of integers as uint64, others as float64."""
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        high, low = np.maximum(a, b), np.minimum(a, b)
        # Negative numbers wrap around in uint64, and so does the subtraction: the difference is right.
        exact: NDArray[Any] = high.astype(np.uint64) - low.astype(np.uint64)
        return exact
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(a.astype(np.float64) - b.astype(np.float64))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""What differs between two files: metadata, tensors, values."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.container.load import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from apr.container.slice import TensorSlice

# Values compared at a time.
_CHUNK = 1 << 20
# Longer metadata values are shown by their beginning.
_SHOWN = 72


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor that both files have and that differs; pairs are of the first and the second file.

    Attributes:
        name: its name.
        dtype: as in the format's table.
        shape: dims; where they differ no values are compared.
        count: values in the tensor.
        differing: how many of them differ; None where the shapes do.
        largest: the largest absolute difference among finite values; None where there is none.
        nonfinite: how many of the differing values have no finite difference: a NaN or infinity on one side.
    """

    name: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    count: int
    differing: int | None
    largest: float | None
    nonfinite: int

    def __str__(self) -> str:
        said = []
        if self.shape[0] != self.shape[1]:
            said.append(f"shape {list(self.shape[0])} -> {list(self.shape[1])}")
        if self.dtype[0] != self.dtype[1]:
            said.append(f"dtype {self.dtype[0]} -> {self.dtype[1]}")
        if self.differing:
            by = "" if self.largest is None else f", by at most {self.largest:.6g}"
            odd = f", {self.nonfinite} of them not finite" if self.nonfinite else ""
            said.append(f"{self.differing} of {self.count} values differ{by}{odd}")
        return f"{self.name}: {'; '.join(said)}"


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between the files `a` and `b`.

    Attributes:
        a: the first path.
        b: the second path.
        atol: the absolute difference of values that was allowed, or None: every bit had to be equal.
        added: metadata that only `b` has.
        removed: metadata that only `a` has.
        changed: metadata that both have: (value in `a`, value in `b`).
        only_in_a: names of tensors.
        only_in_b: names of tensors.
        tensors: the tensors that both have and that differ, in name order.
        compared: how many tensors both have.
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
        """Whether nothing differs."""
        found = (self.added, self.removed, self.changed, self.only_in_a, self.only_in_b, self.tensors)
        return not any(found)

    def to_dict(self) -> dict[str, object]:
        """As JSON would hold it."""
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
        """What `str` shows, line by line: - is only in `a`, + only in `b`, ~ in both."""
        how = "" if self.atol is None else f" (values within {self.atol:g})"
        if self.same:
            return [f"{self.a} and {self.b}: the same{how}, tensors: {self.compared}"]
        return [
            f"{self.a} and {self.b} differ{how}, {len(self.tensors)} of {self.compared} common tensors",
            *(f"  - metadata {key}: {_shown(value)}" for key, value in self.removed.items()),
            *(f"  + metadata {key}: {_shown(value)}" for key, value in self.added.items()),
            *(f"  ~ metadata {key}: {_shown(a)} -> {_shown(b)}" for key, (a, b) in self.changed.items()),
            *(f"  - tensor {name}" for name in self.only_in_a),
            *(f"  + tensor {name}" for name in self.only_in_b),
            *(f"  ~ tensor {tensor}" for tensor in self.tensors),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def diff(a: str | PathLike[str], b: str | PathLike[str], *, atol: float | None = None) -> Diff:
    """Compare two files. Memory does not grow with them.

    Without `atol` values of the same dtype are compared by their bits: a NaN equals one of the same bits,
    and 0.0 differs from -0.0. With `atol`, and between dtypes, they are compared as numbers: every NaN
    equals every other. Quantized tensors are compared by the float32 values they stand for. Metadata are
    compared as JSON (1 and 1.0 differ), the order of keys does not count.

    Args:
        a: a file.
        b: another.
        atol: the absolute difference up to which values count as equal.

    Raises:
        AprError: a file that does not open; with path, tensor and byte.
        UnsupportedError: a v1 file whose payload is not described as tensors.
        ValueError: `atol` is negative, infinite or NaN.
        OSError: as `open` would.
    """
    if atol is not None and not 0 <= atol < inf:
        raise ValueError(f"atol must be a finite number, 0 or more, not {atol}")
    with load(a) as one, load(b) as two:
        one.require_tensors()
        two.require_tensors()
        both = [name for name in one if name in two]
        found = [_tensor(name, one.slice(name), two.slice(name), atol) for name in both]
        return Diff(
            a=os.fspath(a),
            b=os.fspath(b),
            atol=atol,
            added=_without(two.metadata, one.metadata),
            removed=_without(one.metadata, two.metadata),
            changed=_changed(one.metadata, two.metadata),
            only_in_a=tuple(name for name in one if name not in two),
            only_in_b=tuple(name for name in two if name not in one),
            tensors=tuple(tensor for tensor in found if tensor is not None),
            compared=len(both),
        )


def _without(metadata: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in others}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (value, b[key])
        for key, value in a.items()
        if key in b and json.dumps(value, sort_keys=True) != json.dumps(b[key], sort_keys=True)
    }


def _tensor(name: str, a: TensorSlice, b: TensorSlice, atol: float | None) -> TensorDiff | None:
    """What differs in a tensor; None where nothing does."""
    dtype, shape, count = (a.dtype, b.dtype), (a.shape, b.shape), prod(a.shape)
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
    if a.dtype == b.dtype and not differing:
        return None
    return TensorDiff(name, dtype, shape, count, differing, largest, nonfinite)


def _distances(a: NDArray[Any], b: NDArray[Any], atol: float | None) -> NDArray[Any]:
    """The absolute differences of the values that differ; NaN or infinite where one of two is."""
    same_dtype = a.dtype == b.dtype
    if same_dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
        return np.empty(0)
    if atol is None and same_dtype:
        bits = np.dtype(f"u{a.itemsize}")
        at = a.view(bits) != b.view(bits)
        return _distance(a[at], b[at])
    distance = _distance(a, b)
    equal = distance <= (atol or 0)
    if distance.dtype.kind == "f":
        equal |= (a == b) | (np.isnan(a) & np.isnan(b))  # infinities; NaN
    return distance[~equal]


def _distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Absolute differences: of integers exact, as uint64; of others as float64."""
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        high, low = np.maximum(a, b), np.minimum(a, b)
        exact: NDArray[Any] = high.astype(np.uint64) - low.astype(np.uint64)  # wraps around to what is right
        return exact
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(a.astype(np.float64) - b.astype(np.float64))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""Compare the metadata, tensors and values of two opened models."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from math import inf, isfinite, prod, sqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from apr.container.model_file import Values

# Values that are compared at a time: 16 MB of float64, whatever the size of the tensor.
_CHUNK = 1 << 20
# Characters of a metadata value that are shown.
_SHOWN = 72
# The name of a tensor in a layer starts with the layer's: "model.layers.3.", "blk.3.", "h.3.".
_NUMBER = re.compile(r"([0-9]{1,9})")
_LAYER = re.compile(r"(.*?\.\d+)\.")


class Side(Protocol):
    """One of two models that are compared. A `ModelFile` is one."""

    @property
    def path(self) -> str:
        """The path to show."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata to compare."""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tensors."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""

    def slice(self, name: str) -> Values:
        """Return the values of a tensor."""


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
        relative: the Euclidean norm of the differences over that of the first file's values, both of finite
            values; None if there is no finite difference or the norm is 0 or not finite.
    """

    name: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    count: int
    differing: int | None
    largest: float | None
    nonfinite: int
    relative: float | None = None

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
class LayerDiff:
    """The differences of values within a layer.

    Attributes:
        name: the start of the tensors' names, such as "model.layers.3"; a tensor outside layers has its own.
        tensors: the number of its tensors whose values differ.
        largest: the largest absolute difference of finite values; None if there is none.
        relative: the largest `TensorDiff.relative` of its tensors; None if there is none.
        worst: the tensor with the largest relative difference; without any, the first that differs.
    """

    name: str
    tensors: int
    largest: float | None
    relative: float | None
    worst: str

    def __str__(self) -> str:
        largest = "-" if self.largest is None else f"{self.largest:.6g}"
        relative = "-" if self.relative is None else f"{self.relative:.3g}"
        tensors = counted(self.tensors, "tensor")
        return f"{self.name}: {tensors}, largest {largest}, relative {relative} in {self.worst}"


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
        notes: what was not compared, or not by stored names, one line each.
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
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerDiff, ...]:
        """The layers with tensors whose values differ, by their names and numbers."""
        groups: dict[str, list[TensorDiff]] = {}
        for tensor in self.tensors:
            if tensor.differing:
                layer = _LAYER.match(tensor.name)
                groups.setdefault(layer[1] if layer else tensor.name, []).append(tensor)
        # Split at numbers, so that layer 2 comes before layer 10.
        in_order = sorted(
            groups, key=lambda name: [int(n) if n.isdecimal() else n for n in _NUMBER.split(name)]
        )
        return tuple(_layer(name, groups[name]) for name in in_order)

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
            "layers": [asdict(layer) for layer in self.layers],
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """Return the lines that `str` shows: "-" is only in `a`, "+" only in `b`, "~" in both."""
        tolerance = "" if self.atol is None else f" (values within {self.atol:g})"
        notes = [f"  note: {note}" for note in self.notes]
        if self.same:
            verdict = f"{self.a} and {self.b} are the same{tolerance} ({counted(self.compared, 'tensor')})"
            return [verdict, *notes]
        return [
            f"{self.a} and {self.b} differ{tolerance}; common tensors that differ: {len(self.tensors)} of "
            f"{self.compared}",
            *notes,
            *(f"  - metadata {key}: {_short(value)}" for key, value in self.removed.items()),
            *(f"  + metadata {key}: {_short(value)}" for key, value in self.added.items()),
            *(f"  ~ metadata {key}: {_short(a)} -> {_short(b)}" for key, (a, b) in self.changed.items()),
            *(f"  - tensor {name}" for name in self.only_in_a),
            *(f"  + tensor {name}" for name in self.only_in_b),
            *(f"  ~ tensor {tensor}" for tensor in self.tensors),
            # A tensor outside layers has its line above.
            *(f"  = {layer}" for layer in self.layers if layer.name != layer.worst),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def check_tolerance(atol: float | None) -> None:
    """Refuse a tolerance with which no values, or all values, would be equal.

    Raises:
        ValueError: `atol` is negative, infinite or NaN.
    """
    if atol is not None and not 0 <= atol < inf:
        raise ValueError(f"atol must be a finite, nonnegative number, not {atol}")


def compare(
    a: Side, b: Side, *, atol: float | None, values_only: bool = False, notes: tuple[str, ...] = ()
) -> Diff:
    """Compare two models. Memory does not grow with their size.

    Args:
        a: the first model.
        b: the second model.
        atol: as for `apr.diff`.
        values_only: whether tensors of different dtypes are the same if all their values are.
        notes: lines for the result.

    Raises:
        AprError: a file is damaged; the error has the path, tensor and byte.
    """
    both = [name for name in a if name in b]
    compared = [_compare(name, a.slice(name), b.slice(name), atol, values_only=values_only) for name in both]
    return Diff(
        a=a.path,
        b=b.path,
        atol=atol,
        added=_without(b.metadata, a.metadata),
        removed=_without(a.metadata, b.metadata),
        changed=_changed(a.metadata, b.metadata),
        only_in_a=tuple(name for name in a if name not in b),
        only_in_b=tuple(name for name in b if name not in a),
        tensors=tuple(tensor for tensor in compared if tensor is not None),
        compared=len(both),
        notes=notes,
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


def _layer(name: str, tensors: list[TensorDiff]) -> LayerDiff:
    largest = [tensor.largest for tensor in tensors if tensor.largest is not None]
    relative = [tensor for tensor in tensors if tensor.relative is not None]
    worst = max(relative, key=lambda tensor: tensor.relative or 0, default=tensors[0])
    return LayerDiff(name, len(tensors), max(largest, default=None), worst.relative, worst.name)


def _compare(name: str, a: Values, b: Values, atol: float | None, *, values_only: bool) -> TensorDiff | None:
    """Return the differences of a tensor, or None if there are none."""
    dtype, shape, count = (a.dtype, b.dtype), (a.shape, b.shape), prod(a.shape)
    # Values of other shapes have no partners, so there is nothing to count.
    if a.shape != b.shape:
        return TensorDiff(name, dtype, shape, count, None, None, 0)
    differing, nonfinite, largest, squares = 0, 0, None, 0.0
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        distances = _distances(a.flat(start, stop), b.flat(start, stop), atol)
        finite = distances[np.isfinite(distances)]
        differing += distances.size
        nonfinite += distances.size - finite.size
        if finite.size:
            largest = max(finite.max().item(), largest or 0)
            squares += _squares(finite)
    # Tensors of two dtypes are listed even if all values are equal: the files differ.
    if (a.dtype == b.dtype or values_only) and not differing:
        return None
    relative = None
    if largest:
        # In a second pass, which equal tensors, most of them in most comparisons, do without.
        norm = sqrt(sum(_squares(a.flat(n, min(n + _CHUNK, count))) for n in range(0, count, _CHUNK)))
        relative = sqrt(squares) / norm if norm else None
        relative = relative if relative is not None and isfinite(relative) else None
    return TensorDiff(name, dtype, shape, count, differing, largest, nonfinite, relative)


def _squares(values: NDArray[Any]) -> float:
    """Return the sum of the squares of the finite values."""
    with np.errstate(over="ignore"):
        numbers = np.abs(values).astype(np.float64) if values.dtype.kind == "c" else values.astype(np.float64)
        numbers[~np.isfinite(numbers)] = 0
        return float(np.dot(numbers, numbers))


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
        wide = np.complex128 if "c" in {a.dtype.kind, b.dtype.kind} else np.float64
        return np.abs(a.astype(wide) - b.astype(wide))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""An opened model in another format than `.apr`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.model_file import ModelFile
from apr.container.report import Check, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from apr.container.header import TensorInfo


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file: its entry, and how to read its values.

    Attributes:
        info: name, dtype as the format spells it in lower case, shape, and place in the file.
        path: the file.
        flat: returns values `start` to `stop` in row-major order, for any two numbers of values; it raises
            UnsupportedError for a dtype whose values cannot be read.
    """

    info: TensorInfo
    path: str
    flat: Callable[[int, int], NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self.info.shape

    @property
    def dtype(self) -> str:
        """The stored dtype as the format spells it, in lower case."""
        return self.info.dtype


class ForeignFile(ModelFile):
    """A model in safetensors or GGUF files, whose structure was checked when it was opened."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        form: str,
        version: str | None,
        files: Mapping[str, int],
        metadata: Mapping[str, Any],
        config: Mapping[str, Any],
        tensors: Sequence[StoredTensor],
        checks: Sequence[Check],
    ) -> None:
        """Describe an opened model.

        Args:
            path: the path to show.
            form: the name of the format.
            version: the version of the format, if it has one.
            files: the size of each file in bytes, by its path.
            metadata: the metadata as the format stores them.
            config: what describes the architecture, in spellings that `apr.model.metadata` knows.
            tensors: in the order in which they are listed.
            checks: what was checked when the model was opened.
        """
        super().__init__(path)
        self._form = form
        self._version = version
        self._files = dict(files)
        self._metadata = metadata
        self.config = config
        self._tensors = {tensor.info.name: tensor for tensor in tensors}
        self._checks = tuple(checks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        return self.slice(name).info

    def numpy(self, name: str) -> np.ndarray:
        tensor = self.slice(name)
        return tensor.flat(0, prod(tensor.shape)).reshape(tensor.shape)

    def slice(self, name: str) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise KeyError(f"{self.path}: no tensor {name!r}")
        return tensor

    @property
    def is_sharded(self) -> bool:
        return len(self._files) > 1

    @property
    def file_paths(self) -> tuple[str, ...]:
        return tuple(self._files)

    def path_of(self, name: str) -> str:
        return self.slice(name).path

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    @property
    def form(self) -> str:
        return self._form

    @property
    def nbytes(self) -> int:
        return sum(self._files.values())

    def header_facts(self) -> dict[str, object]:
        return {
            "version": self._version,
            "header_checksum": None,
            "footer_checksum": None,
            "flags": {},
            "unknown_flags": [],
            "reserved": None,
            "v1": None,
        }

    def verify(self) -> Report:
        return Report(self.path, opened=True, checks=self._checks)

    def require_tensors(self) -> None:
        """Do nothing: every value of these formats is in a tensor."""

    def close(self) -> None:
        """Do nothing: a file is only open while values are read from it."""


def any_range(
    read: Callable[[int, int], NDArray[Any]], unit: int, count: int
) -> Callable[[int, int], NDArray[Any]]:
    """Return a reader of any range of values over one that reads whole units.

    Args:
        read: returns the values from `start` to `stop`, each a multiple of `unit` or the number of values.
        unit: the number of values of a unit, such as a quantization block or a head; 0 of an empty tensor.
        count: the number of values of the tensor.
    """
    unit = max(1, unit)

    def flat(start: int, stop: int) -> NDArray[Any]:
        first, last = start - start % unit, min(stop + -stop % unit, count)
        return read(first, last)[start - first : stop - first]

    return flat


def no_checksum(form: str) -> Check:
    """Return the check that says what a format without checksums leaves open."""
    return Check(
        "checksum", None, f"{form} stores none: the values cannot be verified; run apr seal to record one"
    )

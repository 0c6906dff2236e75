"""The interface of every opened model file, of whatever format: what listing, comparing and checking need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, Self

from apr.path_arguments import as_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from apr.container.header import TensorInfo
    from apr.container.report import Report


class Values(Protocol):
    """The values of a stored tensor, read by position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""

    @property
    def dtype(self) -> str:
        """The stored dtype as the format spells it, in lower case."""

    def flat(self, start: int, stop: int) -> NDArray[Any]:
        """Return values `start` to `stop` in row-major order, dequantized if they are quantized."""


class ModelFile(ABC):
    """An opened model: names, index entries and values of its tensors, and its metadata.

    `TensorFile` is the `.apr` model, which is also a mapping to torch tensors. `apr.formats` has the others.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = as_path(path)

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the tensors."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tensors."""

    @abstractmethod
    def __contains__(self, name: object) -> bool:
        """Whether the file has a tensor of this name."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Return the index entry of a tensor: dtype, shape, size, offset.

        Raises:
            KeyError: the file has no tensor of this name.
        """

    @abstractmethod
    def numpy(self, name: str) -> np.ndarray:
        """Return a tensor as a NumPy array (bfloat16 through ml_dtypes), without importing torch.

        Quantized tensors are dequantized to float32.

        Raises:
            KeyError: the file has no tensor of this name.
            TruncatedError: the file was cut short since it was opened.
        """

    @abstractmethod
    def slice(self, name: str) -> Values:
        """Return the values of a tensor, which are read when they are asked for.

        Raises:
            KeyError: the file has no tensor of this name.
        """

    @property
    def path(self) -> str:
        """The path that was opened, as it was given."""
        return self._path

    @property
    def is_sharded(self) -> bool:
        """Whether the tensors are spread over several files."""
        return False

    @property
    @abstractmethod
    def file_paths(self) -> tuple[str, ...]:
        """The paths of the files that hold the tensors."""

    @abstractmethod
    def path_of(self, name: str) -> str:
        """Return the path of the file that holds a tensor.

        Raises:
            KeyError: the file has no tensor of this name.
        """

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """The metadata, in the order of the file."""

    @property
    @abstractmethod
    def form(self) -> str:
        """The form of the format, such as "APR v2" or "safetensors"."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The size of the file in bytes; of several files, of all together."""

    @abstractmethod
    def header_facts(self) -> dict[str, object]:
        """Return what `apr.inspect` shows of the header: version, checksums, flags, reserved bytes, v1."""

    @abstractmethod
    def verify(self) -> Report:
        """Check the file as far as its format allows. Damage is reported, not raised."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. Names and metadata once read stay valid."""

    @abstractmethod
    def require_tensors(self) -> None:
        """Check that the values of the file are known as tensors; a version 1 file may not describe them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

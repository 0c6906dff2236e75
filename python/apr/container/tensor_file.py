"""The interface of every opened model, whatever its version and however many files it has."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, overload

from apr.container.model_file import ModelFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    import numpy as np
    import torch

    from apr.container.header import FileHeader, TensorInfo
    from apr.container.metadata import Metadata
    from apr.container.report import Report
    from apr.container.slice import TensorSlice

_Default = TypeVar("_Default")

# Suggesting close names compares the missing name with this many neighbors in name order: comparing it with
# all names of a file with 100,000 tensors would take seconds.
_COMPARED_NAMES = 1000
# A longer name gets no suggestions: the comparison takes quadratic time in the length.
_LONGEST_COMPARED_NAME = 256


class TensorFile(ModelFile, Mapping[str, "torch.Tensor"]):
    """An opened model: a read-only mapping from tensor names to tensors. `apr.load` returns one.

    The subclass depends on the file: `AprFile` for one file, `ShardedFile` for a model in several files,
    `V1File` for the older version 1.

    A tensor uses the mapped pages of the file without a copy. It keeps them alive on its own, so that it
    stays valid after the file is closed; writing to it never changes the file.

    Two opened files are equal only if they are the same object.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        # A pickle must open the same file in a process that has another working directory.
        self._absolute = os.path.abspath(self._path)  # noqa: PTH100 (takes a third of Path's time)

    # A mapping compares its items by default, which would read every tensor.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @abstractmethod
    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor that uses the mapped pages of the file.

        A quantized tensor is dequantized to float32 each time. A tensor that an old file stores at an
        unaligned offset is copied.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
            FormatError: the tensor is tied to an embedding that the file does not have.
            TruncatedError: the file was cut short since it was opened.
        """

    @abstractmethod
    def __contains__(self, name: object) -> bool:
        """Whether the file has a tensor of this name."""

    @overload
    def get(self, name: str, /) -> torch.Tensor | None: ...
    @overload
    def get(self, name: str, default: torch.Tensor | _Default, /) -> torch.Tensor | _Default: ...
    def get(self, name: str, default: object = None, /) -> object:
        """Return a tensor, or `default` if the file has none of this name."""
        # Mapping's own `get` catches the KeyError, whose similar names take 20 to 80 ms to find.
        return self[name] if name in self else default  # noqa: SIM401 (this is `get`)

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Return the index entry of a tensor: dtype, shape, size, offset.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """

    @abstractmethod
    def numpy(self, name: str) -> np.ndarray:
        """Return a tensor as a NumPy array (bfloat16 through ml_dtypes), without importing torch.

        The array uses the mapped pages of the file. Quantized tensors are dequantized to float32.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
            TruncatedError: the file was cut short since it was opened.
        """

    @abstractmethod
    def raw(self, name: str) -> memoryview:
        """Return the stored bytes of a tensor, read-only and without a copy.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
            TruncatedError: the file was cut short since it was opened.
        """

    @abstractmethod
    def slice(self, name: str) -> TensorSlice:
        """Return a view to index: `f.slice(name)[5:9, :64]` reads only those rows, into new memory.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """

    @abstractmethod
    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
        *,
        allow_overflow: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Return a state dict in new memory. This is the fast way to a device: reads run in parallel.

        Args:
            device: the target. A CUDA device is filled through a small ring of page-locked buffers.
            dtype: the dtype of floating-point tensors; by default they stay as stored, and quantized ones
                become float32.
            names: the tensors to read, in this order; by default all of them.
            allow_overflow: whether values beyond the range of `dtype` become infinities.

        Raises:
            WeightsError: a value is beyond the range of `dtype`, as 70,000 is of float16.
            KeyError: the file has no tensor of this name; the message suggests similar names.
            TruncatedError: the file was cut short since it was opened.
            TypeError: `names` is a single string, or `dtype` is not a torch dtype.
            DeviceError: the device does not exist.
        """

    @property
    def files(self) -> tuple[TensorFile, ...]:
        """The files that hold the tensors: this one, or those of a model in several files."""
        return (self,)

    def file_of(self, name: str) -> TensorFile:
        """Return the file that holds a tensor.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """
        self.info(name)
        return self

    @property
    def file_paths(self) -> tuple[str, ...]:
        """The paths of the files that hold the tensors."""
        return tuple(file.path for file in self.files)

    def path_of(self, name: str) -> str:
        """Return the path of the file that holds a tensor.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """
        return self.file_of(name).path

    @property
    @abstractmethod
    def header(self) -> FileHeader:
        """The fields of the header."""

    @property
    @abstractmethod
    def metadata(self) -> Metadata:
        """The metadata: a read-only dictionary in the order of the file, read on first use.

        Raises:
            FormatError: the metadata are not a JSON object within the format's limits.
            TruncatedError: the file was cut short since it was opened.
        """

    @property
    @abstractmethod
    def footer(self) -> int | None:
        """The CRC32 that is stored at the end; None without one, and for a model in several files."""

    @abstractmethod
    def verify(self) -> Report:
        """Read every byte again and check it. Damage is reported, not raised."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. Tensors taken from it stay valid, and so do names and metadata once read."""

    def require_tensors(self) -> None:
        """Check that the values of the file are known as tensors.

        Raises:
            UnsupportedError: a version 1 file that does not describe its payload as tensors.
            DecryptionError: an encrypted version 1 file that was opened without its key.
        """

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._absolute,)

    def _missing(self, name: object) -> KeyError:
        """Return the error for a name that is not in the file, with similar names."""
        from bisect import bisect
        from difflib import get_close_matches

        text, names = str(name), list(self)
        close: list[str] = []
        if len(text) <= _LONGEST_COMPARED_NAME:
            # Near in name order: similar names of tensors usually begin alike.
            start = max(0, min(bisect(names, text) - _COMPARED_NAMES // 2, len(names) - _COMPARED_NAMES))
            close = get_close_matches(text, names[start : start + _COMPARED_NAMES], n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        return KeyError(f"{self._path}: no tensor {name!r}{hint}")

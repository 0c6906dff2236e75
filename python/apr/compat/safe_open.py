"""`apr.safe_open`: read an `.apr` file with the interface of safetensors' `safe_open`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from apr.compat.text_metadata import as_texts
from apr.container.dtypes import QUANTIZED
from apr.container.load import load
from apr.errors import named_extras

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType

    from apr.container.header import TensorInfo

# The spellings that safetensors accepts.
_TORCH, _NUMPY = ("pt", "torch", "pytorch"), ("np", "numpy")
_BACKENDS = ("mmap", "pread")


class safe_open:  # noqa: N801 (safetensors' name)
    """Open an `.apr` file with safetensors' interface: a script changes its import and nothing else.

    On the CPU, tensors use the mapped pages of the file (copy-on-write), or new memory with
    `backend="pread"`. On another device they are read into its memory. Quantized tensors are dequantized to
    float32. Where safetensors raises `SafetensorError`, this class raises `AprError`, `KeyError` (no such
    tensor) or `ValueError`.

    Args:
        filename: the file; or, for a model in several files, its index or directory.
        framework: "pt" for torch or "np" for NumPy (bfloat16 through ml_dtypes).
        device: the device of torch tensors: "cpu", "cuda:1", or the number of a CUDA device.
        backend: "mmap" or "pread".

    Raises:
        AprError: the file is damaged, cut short, or of an unsupported kind.
        ValueError: an unknown framework, device (`DeviceError`) or backend.
        OSError: the file cannot be opened or read.
    """

    def __init__(
        self,
        filename: str | PathLike[str],
        framework: str,
        device: str | int = "cpu",
        *,
        backend: Literal["mmap", "pread"] = "mmap",
    ) -> None:
        if framework not in _TORCH + _NUMPY:
            raise ValueError(f"unknown framework {framework!r}; use 'pt' or 'np'")
        if backend not in _BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; use 'mmap' or 'pread'")
        self._is_torch = framework in _TORCH
        self._is_mapped = backend == "mmap"
        if self._is_torch:
            with named_extras():
                from apr.container.devices import parse_device

            self._device = parse_device(device)
            self._is_mapped = self._is_mapped and self._device.type == "cpu"
        elif device != "cpu":
            raise ValueError(f"device {device!r} is not available for NumPy; use 'cpu'")
        self._file = load(filename)
        # A v1 file may hold a payload that is not described as tensors. It once came back as an empty state
        # dict.
        self._file.require_tensors()

    def keys(self) -> list[str]:
        """Return the tensor names, sorted."""
        return list(self._file)

    def offset_keys(self) -> list[str]:
        """Return the tensor names in the order of the stored data."""
        return sorted(self._file, key=lambda name: self._file.info(name).offset)

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata, with values other than strings as JSON; None if there are none."""
        # safetensors, too, returns None for a file without metadata.
        return as_texts(self._file.metadata) or None

    def get_tensor(self, name: str) -> Any:  # noqa: ANN401 (torch.Tensor or numpy.ndarray)
        """Return a whole tensor.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """
        if not self._is_torch:
            return self._file.numpy(name) if self._is_mapped else self._file.slice(name).numpy()
        if self._is_mapped:
            return self._file[name]
        return self._file.to_torch(self._device, names=[name])[name]

    def get_tensors(self) -> dict[str, Any]:
        """Return every tensor by its name."""
        if not self._is_torch:
            return {name: self.get_tensor(name) for name in self._file}
        return dict(self._file) if self._is_mapped else self._file.to_torch(self._device)

    def get_slice(self, name: str) -> Slice:
        """Return a view to index, which reads only the rows that are asked for.

        Raises:
            KeyError: the file has no tensor of this name; the message suggests similar names.
        """
        self._file.info(name)
        # An unknown name has failed by now, and not only when the slice is indexed.
        return Slice(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _part(self, name: str, index: Any) -> Any:  # noqa: ANN401
        # Indexing mapped pages reads only those that are used. A quantized tensor would be dequantized whole.
        if self._is_mapped and self._file.info(name).dtype not in QUANTIZED:
            return self.get_tensor(name)[index]
        part = self._file.slice(name)
        try:
            return part[index].to(self._device) if self._is_torch else part.numpy(index)
        except (TypeError, ValueError):  # lists, masks and negative steps need the whole tensor
            return self.get_tensor(name)[index]


class Slice:
    """A tensor to index, as `safe_open.get_slice` returns it."""

    def __init__(self, opened: safe_open, name: str) -> None:
        self._opened = opened
        self._name = name

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Return the stored dtype as safetensors spells it: "F32", "BF16"; "Q4_K" if it is quantized."""
        return self._info.dtype.upper()

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 (what torch and NumPy accept)
        """Return the values at the index. For integers and slices, only those rows are read."""
        return self._opened._part(self._name, index)  # noqa: SLF001 (same module)

    @property
    def _info(self) -> TensorInfo:
        return self._opened._file.info(self._name)  # noqa: SLF001

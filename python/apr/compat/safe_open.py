"""`apr.safe_open`: an `.apr` file under the names that safetensors' `safe_open` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from apr.compat.text_metadata import as_texts
from apr.container.dtypes import QUANTIZED
from apr.container.load import load

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType

    from apr.container.header import TensorInfo

# As safetensors takes them.
_TORCH, _NUMPY = ("pt", "torch", "pytorch"), ("np", "numpy")
_BACKENDS = ("mmap", "pread")


class safe_open:  # noqa: N801 (safetensors' name)
    """Open an `.apr` file with safetensors' interface: a script changes its import and nothing else.

    On the CPU tensors lie in the mapped pages (copy-on-write), with `backend="pread"` in memory of their
    own; on another device they are read into it. Quantized tensors come as float32. Where safetensors
    raises SafetensorError this raises AprError, KeyError (no such tensor) or ValueError.

    Args:
        filename: the file.
        framework: "pt" (torch) or "np" (NumPy, bfloat16 through ml_dtypes).
        device: where torch tensors go: "cpu", "cuda:1", or the number of a CUDA device.
        backend: "mmap" or "pread".

    Raises:
        AprError: the file is damaged, cut off, or of a kind that is not read.
        ValueError: a framework, device (DeviceError) or backend that is not there.
        OSError: as `open` would.
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
            raise ValueError(f"framework {framework!r} is not there: 'pt' and 'np' are")
        if backend not in _BACKENDS:
            raise ValueError(f"backend {backend!r} is not there: 'mmap' and 'pread' are")
        self._is_torch = framework in _TORCH
        self._in_place = backend == "mmap"
        if self._is_torch:
            from apr.container.to_device import known

            self._device = known(device)
            self._in_place = self._in_place and self._device.type == "cpu"
        elif device != "cpu":
            raise ValueError(f"device {device!r} is not there for NumPy: 'cpu' is")
        self._file = load(filename)
        self._file.require_tensors()

    def keys(self) -> list[str]:
        """The names, sorted."""
        return list(self._file)

    def offset_keys(self) -> list[str]:
        """The names in the order of the data."""
        return sorted(self._file, key=lambda name: self._file.info(name).offset)

    def metadata(self) -> dict[str, str] | None:
        """The metadata, values other than text as JSON; None where there are none."""
        return as_texts(self._file.metadata) or None

    def get_tensor(self, name: str) -> Any:  # noqa: ANN401 (torch.Tensor or numpy.ndarray)
        """The whole tensor.

        Raises:
            KeyError: no such tensor; names close matches.
        """
        if not self._is_torch:
            return self._file.numpy(name) if self._in_place else self._file.slice(name).numpy()
        if self._in_place:
            return self._file[name]
        return self._file.to_torch(self._device, names=[name])[name]

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor by its name."""
        if not self._is_torch:
            return {name: self.get_tensor(name) for name in self._file}
        return dict(self._file) if self._in_place else self._file.to_torch(self._device)

    def get_slice(self, name: str) -> Slice:
        """A tensor of which `[...]` takes parts.

        Raises:
            KeyError: no such tensor; names close matches.
        """
        self._file.info(name)
        return Slice(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _part(self, name: str, index: Any) -> Any:  # noqa: ANN401
        if self._in_place and self._file.info(name).dtype not in QUANTIZED:
            return self.get_tensor(name)[index]
        part = self._file.slice(name)
        try:
            return part[index].to(self._device) if self._is_torch else part.numpy(index)
        except (TypeError, ValueError):  # lists, masks, steps back: only the whole tensor takes them
            return self.get_tensor(name)[index]


class Slice:
    """What `get_slice` gives."""

    def __init__(self, opened: safe_open, name: str) -> None:
        self._opened = opened
        self._name = name

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """The stored dtype in safetensors' spelling: "F32", "BF16"; "Q4_K" where it is quantized."""
        return self._info.dtype.upper()

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 (what torch and NumPy take)
        """The values under the index; of integers and slices only the rows that are asked for are read."""
        return self._opened._part(self._name, index)  # noqa: SLF001 (same module)

    @property
    def _info(self) -> TensorInfo:
        return self._opened._file.info(self._name)  # noqa: SLF001

"""The tensors of one file, read through the compiled `Container`."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apr._core import Container
from apr.container.header import TensorInfo
from apr.container.metadata import Metadata
from apr.container.report import Report
from apr.container.tensor_file import TensorFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    import numpy as np
    import torch

    from apr._core import Mapping as Pages
    from apr.container.slice import TensorSlice


class MappedFile(TensorFile):
    """One file, of any version. `AprFile` and `V1File` add the header of theirs."""

    def __init__(self, path: str | PathLike[str], container: Container | None = None) -> None:
        super().__init__(path)
        # A pickle gives the path alone.
        self._opened: Container | None = container or Container(self._path)
        self._names: tuple[str, ...] | None = None
        # Mapped on first use: whoever reads metadata or slices needs no mapping.
        self._mapped: Pages | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            capsule = self._container.dlpack(name, self._pages)
        except (KeyError, TypeError, UnicodeEncodeError):  # not in the file, not a str, a lone surrogate
            raise self._missing(name) from None
        return self._copied(name) if capsule is None else self._from_dlpack(capsule)

    def _copied(self, name: str) -> torch.Tensor:
        """Return a tensor that the pages do not hold as it is: empty, tied, quantized or unaligned."""
        import torch

        from apr.container.torch_dtypes import TORCH, empty

        stored = self._stored(name)
        if stored.name != name:
            return self[stored.name]
        values = empty(stored.shape, TORCH.get(stored.dtype, torch.float32))
        # Straight into the tensor: the values are written once.
        if stored.dtype not in TORCH:
            self._container.dequantize(name, 0, values.view(-1).numpy().data)
        else:
            self._container.read([(stored.offset, values.view(-1).view(torch.uint8).numpy().data)])
        return values

    def __iter__(self) -> Iterator[str]:
        if self._names is None:  # kept, so that the names can be listed after `close`
            self._names = self._container.names()
        return iter(self._names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) is not None

    def numpy(self, name: str) -> np.ndarray:
        import numpy as np

        from apr.container.dtypes import NUMPY

        stored = self._stored(name)
        plain = NUMPY.get(stored.dtype)
        # Version 2 aligns tensors to 64 bytes. The JSON container does not align them at all.
        if plain is not None and stored.offset % plain.itemsize == 0:
            return np.ndarray(stored.shape, plain, memoryview(self._pages), stored.offset)
        values = np.empty(stored.shape, plain or np.float32)
        if plain is None:
            self._container.dequantize(stored.name, 0, values.reshape(-1).data)
        else:
            self._container.read([(stored.offset, values.reshape(-1).view(np.uint8).data)])
        return values

    def raw(self, name: str) -> memoryview:
        info = self.info(name)
        # Read-only: the pages are shared with every tensor of this file.
        return memoryview(self._pages)[info.offset : info.offset + info.nbytes].toreadonly()

    def slice(self, name: str) -> TensorSlice:
        from apr.container.slice import TensorSlice

        return TensorSlice(self._container, self._stored(name))

    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        from apr.container.to_device import to_device

        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, not a string; pass [{names!r}]")
        wanted = list(self if names is None else names)
        try:
            entries = self._container.stored_entries(wanted)
        except (KeyError, TypeError, UnicodeEncodeError):  # not in the file, not a str, a lone surrogate
            missing = next(name for name in wanted if name not in self)
            raise self._missing(missing) from None
        stored = {name: TensorInfo(*entry) for name, entry in zip(wanted, entries, strict=True)}
        return to_device(self._container, stored, device, dtype)

    def info(self, name: str) -> TensorInfo:
        # Looked up each time: the index stays as it is stored. Entries kept as objects once took six times
        # the size of a file of 100,000 tensors.
        entry = self._entry(name)
        if entry is None:
            raise self._missing(name)
        return TensorInfo(name, *entry)

    @cached_property
    def metadata(self) -> Metadata:
        return Metadata(json.loads(self._container.metadata()))

    def metadata_value(self, key: str) -> Any:  # noqa: ANN401 (any JSON)
        """Return one top-level value of the metadata without parsing the others; None if it is missing.

        Other writers repeat the metadata, with a tokenizer of 12 MB, in every file of a sharded model.
        """
        text = self._container.member(key)
        return None if text is None else json.loads(text)

    @property
    def form(self) -> str:
        return self._container.form

    @property
    def nbytes(self) -> int:
        return self._container.size

    @property
    def footer(self) -> int | None:
        return self._container.footer

    def check_all_bytes(self) -> None:
        """Check the metadata and the CRC32 of every byte, as `apr.load(path, verify="full")` does.

        Raises:
            AprError: something is damaged; the error has the path, tensor and byte.
        """
        self._container.check_rest()

    def verify(self) -> Report:
        return Report.from_findings(self._path, self._container.verify(None))

    def close(self) -> None:
        # Only the references go. A tensor keeps its pages until it is collected.
        self._opened = self._mapped = None

    def __repr__(self) -> str:
        state = f"{len(self)} tensors" if self._opened else "closed"
        return f"<{type(self).__name__} {self._path!r}: {state}>"

    def _stored(self, name: str) -> TensorInfo:
        """Return the entry whose bytes are the values: the tensor's own, or the embedding's if it is tied."""
        info = self.info(name)
        return self.info(self._container.stored(name)) if info.tied else info

    @property
    def _container(self) -> Container:
        if self._opened is None:
            raise ValueError(f"{self._path}: the file is closed")
        return self._opened

    @property
    def _pages(self) -> Pages:
        # Read the attribute once: another thread may close the file between two reads.
        pages = self._mapped
        if pages is None:
            pages = self._mapped = self._container.map()
        return pages

    @cached_property
    def _from_dlpack(self) -> Callable[[object], torch.Tensor]:
        # Kept on the file: importing it in every __getitem__ would cost as much as the rest of the call.
        from torch.utils.dlpack import from_dlpack

        return from_dlpack

    def _entry(self, name: str) -> tuple[str, tuple[int, ...], int, int] | None:
        try:
            return self._container.info(name)
        except UnicodeEncodeError:  # a lone surrogate
            return None

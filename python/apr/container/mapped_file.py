"""The tensors of one file, read through the compiled `Container`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apr._core import Container
from apr.container.byte_dtypes import BITS, DTYPES_KEY, STORED, check_size, parse_dtypes
from apr.container.header import TensorInfo
from apr.container.metadata import Metadata
from apr.container.report import Check, Report
from apr.container.tensor_file import TensorFile
from apr.errors import FormatError, named_extras

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
        if capsule is None:
            return self._copied(name)
        values = self._from_dlpack(capsule)
        return values if values.itemsize > 1 else self._typed(name, values)

    def _typed(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return a tensor of bytes in its true dtype, in the same memory."""
        info = self.info(name)
        if info.dtype not in BITS:
            return values
        from apr.container.torch_dtypes import check_torch_has, of_bytes

        check_torch_has(self._path, info)
        return of_bytes(values, info)

    def _copied(self, name: str) -> torch.Tensor:
        """Return a tensor that the pages do not hold as it is: empty, tied, quantized or unaligned."""
        with named_extras():
            import torch

        from apr.container.torch_dtypes import TORCH, check_torch_has, empty, of_bytes

        stored = self._stored(name)
        if stored.name != name:
            return self[stored.name]
        if stored.dtype in BITS:
            check_torch_has(self._path, stored)
            values = empty((stored.nbytes,), torch.uint8)
            self._container.read([(stored.offset, values.numpy().data)])
            return of_bytes(values, stored)
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

        from apr.container.dtypes import NUMPY, check_numpy_has

        stored = self._stored(name)
        check_numpy_has(self._path, stored)
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

        return TensorSlice(self._path, self._container, self._stored(name))

    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
        *,
        allow_overflow: bool = False,
    ) -> dict[str, torch.Tensor]:
        with named_extras():
            from apr.container.to_device import to_device

        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, not a string; pass [{names!r}]")
        wanted = list(self if names is None else names)
        try:
            entries = self._container.stored_entries(wanted)
        except (KeyError, TypeError, UnicodeEncodeError):  # not in the file, not a str, a lone surrogate
            missing = next(name for name in wanted if name not in self)
            raise self._missing(missing) from None
        stored = {name: self._true(TensorInfo(*entry)) for name, entry in zip(wanted, entries, strict=True)}
        return to_device(self._path, self._container, stored, device, dtype, allow_overflow=allow_overflow)

    def info(self, name: str) -> TensorInfo:
        # Looked up each time: the index stays as it is stored. Entries kept as objects once took six times
        # the size of a file of 100,000 tensors.
        entry = self._entry(name)
        if entry is None:
            raise self._missing(name)
        return self._true(TensorInfo(name, *entry))

    def _true(self, info: TensorInfo) -> TensorInfo:
        """Return an entry of the index with the true dtype and shape of a tensor that is stored as bytes."""
        # Only tensors of bytes can be others: a file without them is read without its metadata.
        if info.dtype != STORED or info.name not in self._byte_dtypes:
            return info
        dtype, shape = self._byte_dtypes[info.name]
        check_size(self._path, info.name, dtype, shape, info.nbytes)
        return replace(info, dtype=dtype, shape=shape)

    @cached_property
    def _byte_dtypes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return parse_dtypes(self._path, self.metadata_value(DTYPES_KEY))

    @cached_property
    def metadata(self) -> Metadata:
        metadata = json.loads(self._container.metadata())
        # It belongs to the index: the next writer makes its own from the dtypes of the tensors.
        metadata.pop(DTYPES_KEY, None)
        return Metadata(metadata)

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
        return with_dtypes_check(Report.from_findings(self._path, self._container.verify(None)), self)

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
        with named_extras():
            from torch.utils.dlpack import from_dlpack

        return from_dlpack

    def _entry(self, name: str) -> tuple[str, tuple[int, ...], int, int] | None:
        try:
            return self._container.info(name)
        except UnicodeEncodeError:  # a lone surrogate
            return None


def with_dtypes_check(report: Report, file: MappedFile) -> Report:
    """Return the report of a file with a check of the dtypes in its metadata, if tensors are stored as bytes.

    Args:
        report: the checks of the compiled module, which does not know these dtypes.
        file: the file.
    """
    # Version 1 has no such tensors. Damaged metadata have a check of their own.
    if file.form == "APR v1" or any(
        check.passed is False for check in report.checks if check.name == "metadata"
    ):
        return report
    try:
        counts = Counter(info.dtype for info in map(file.info, file) if info.dtype in BITS)
    except FormatError as error:
        check = Check("dtypes", False, str(error).removeprefix(f"{file.path}: "), error.tensor)
    else:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))
        check = Check("dtypes", True, f"tensors stored as bytes: {kinds}")
        if not counts:
            return report
    # In file order: they describe the entries of the index.
    after = [place for place, check in enumerate(report.checks) if check.name == "tensor index"]
    place = after[0] + 1 if after else len(report.checks)
    return replace(report, checks=(*report.checks[:place], check, *report.checks[place:]))

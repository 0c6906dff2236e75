"""An open `.apr` file: a mapping from names to tensors that lie in the file's own pages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal, Self

from apr._core import Container
from apr.container.metadata import Metadata
from apr.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike
    from types import TracebackType

    import numpy as np
    import torch

    from apr._core import Mapping as Pages
    from apr.container.slice import TensorSlice
    from apr.container.verify import Report


# State of a training run; not of the model.
TRAINING_PREFIX = "__training__."
# Names that a missing one is compared with, its neighbors: of a hundred thousand it would take seconds.
_COMPARED = 1000
_LONGEST_NAME = 256
# The output projection, in transformers' names and in GGUF's.
HEADS = ("lm_head.weight", "output.weight")


class Flags(IntFlag):
    """Bits of the header; bits without a name are kept."""

    LZ4_COMPRESSED = 1 << 0
    ZSTD_COMPRESSED = 1 << 1
    ENCRYPTED = 1 << 2
    SIGNED = 1 << 3
    SHARDED = 1 << 4
    QUANTIZED = 1 << 5
    HAS_FILTERBANK = 1 << 6
    HAS_MODEL_CARD = 1 << 7
    STREAMING = 1 << 8
    HAS_VOCAB = 1 << 9
    LAYOUT_ROW_MAJOR = 1 << 10
    LAYOUT_COLUMN_MAJOR = 1 << 11


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of the header, offsets and sizes in bytes.

    The JSON container `APR1` has no flags, no checksum of its header and no reserved bytes: `flags` is empty,
    `checksum` and `reserved` are None. Its version is the one that its magic stands for.
    """

    magic: bytes
    version: tuple[int, int]
    flags: Flags
    tensor_count: int
    metadata_offset: int
    metadata_size: int
    tensor_index_offset: int
    data_offset: int
    checksum: int | None
    reserved: bytes | None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the index says of a tensor. `dtype` as in the format's table, `offset` from the file's start.

    In a file that is compressed as a whole, `offset` counts in what it unpacks to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int

    @property
    def tied(self) -> bool:
        """Whether it has no bytes of its own and stands for the embedding."""
        return self.nbytes == 0 and prod(self.shape) > 0


def load(
    path: str | PathLike[str],
    *,
    verify: Literal["structure", "full"] = "structure",
    password: str | None = None,
    recipient_key: bytes | None = None,
    trusted_key: bytes | None = None,
) -> AprFile:
    """Open an `.apr` file of any form: header and index are read, tensors are mapped on first use.

    The metadata of a current file (v2) are read and checked when they are first asked for: a tokenizer in
    them takes no time from those who want tensors.

    Args:
        path: the file; or, for a model in several files, its index (`model.apr.index.json`) or directory.
        verify: "structure" checks header, index and bounds; "full" also the metadata and the CRC32 of every
            byte.
        password: decrypts a v1 file that was encrypted with it.
        recipient_key: the X25519 secret key, 32 bytes, of the one whom a v1 file is encrypted for.
        trusted_key: the Ed25519 public key, 32 bytes, by which a v1 file must be signed.

    Returns:
        The open file; of v1 (magic `APRN`) a `V1File`, of a model in several files a `ShardedFile`.

    Raises:
        AprError: the file is damaged, cut off, or of a kind that is not read; with path, tensor and byte.
        DecryptionError: a key is wrong or of the wrong kind, or the file is not encrypted.
        SignatureError: the signature does not fit, is not by the trusted key, or there is none.
        IsADirectoryError: a directory with neither one index nor exactly one .apr file.
        OSError: as `open` would.
    """
    if verify not in {"structure", "full"}:
        raise ValueError(f"verify must be 'structure' or 'full', not {verify!r}")
    if isinstance(path, bytes):
        raise TypeError(f"a path is a str or a PathLike, not bytes: os.fsdecode({path!r})")
    if os.fspath(path).endswith(".index.json") or os.path.isdir(path):  # noqa: PTH112 (a Path costs more)
        from apr.container.sharded import load_several

        _refuse_safetensors(os.fspath(path))
        return load_several(
            path, verify=verify, password=password, recipient_key=recipient_key, trusted_key=trusted_key
        )
    container = Container(os.fspath(path), password, recipient_key, trusted_key)
    if verify == "full":
        container.check_rest()
    if container.form != "APR v1":
        return AprFile(path, container)
    from apr.container.legacy.v1 import V1File

    return V1File(path, container)


def _refuse_safetensors(path: str) -> None:
    if path.endswith(".safetensors.index.json") and os.path.isfile(path):  # noqa: PTH113 (as above)
        raise UnsupportedError(
            f"{path}: the index of safetensors files: apr convert makes an .apr file of them", path=path
        )


class AprFile(Mapping[str, "torch.Tensor"]):
    """Names to tensors, in index order. Made by `apr.load`.

    A tensor lies in the mapped pages and keeps them alive on its own; writing to it never changes the
    file. A quantized tensor is dequantized to float32 each time it is asked for, and one that an old form
    of the file keeps at a place where its values cannot stand is copied.
    """

    def __init__(self, path: str | PathLike[str], container: Container | None = None) -> None:
        self._path = os.fspath(path)
        self._absolute = os.path.abspath(self._path)  # noqa: PTH100 (in a third of the time)
        self._open: Container | None = container or Container(self._path)
        self._names: tuple[str, ...] | None = None
        self._mapped: Pages | None = None

    # the mapping

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor, on the mapped pages.

        Raises:
            KeyError: no such tensor; names close matches.
            FormatError: an empty head that is tied to no embedding of its shape.
        """
        try:
            capsule = self._container.dlpack(name, self._pages)
        except (KeyError, TypeError, UnicodeEncodeError):  # no name, no text, a lone surrogate
            raise self._missing(name) from None
        return self._made(name) if capsule is None else self._from_dlpack(capsule)

    def _made(self, name: str) -> torch.Tensor:
        """A tensor that is not on the pages as it is: empty, tied, quantized, at an unaligned place."""
        import torch

        from apr.container.torch_dtypes import TORCH, empty

        stored = self._stored(name)
        if stored.name != name:
            return self[stored.name]
        values = empty(stored.shape, TORCH.get(stored.dtype, torch.float32))
        if stored.dtype not in TORCH:
            self._container.dequantize(name, 0, values.view(-1).numpy().data)
        else:
            self._container.read([(stored.offset, values.view(-1).view(torch.uint8).numpy().data)])
        return values

    def __iter__(self) -> Iterator[str]:
        if self._names is None:
            self._names = self._container.names()
        return iter(self._names)

    def __len__(self) -> int:
        return self.header.tensor_count

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) is not None

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        """The tensor, or `default` where there is none."""
        if name not in self:
            return default
        return self[name]

    # two open files are the same only when they are one
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # other forms of a tensor

    def numpy(self, name: str) -> np.ndarray:
        """The tensor as a NumPy array on the mapped pages (bfloat16 through ml_dtypes); no torch needed."""
        import numpy as np

        from apr.container.dtypes import NUMPY

        stored = self._stored(name)
        plain = NUMPY.get(stored.dtype)
        if plain is not None and stored.offset % plain.itemsize == 0:
            return np.ndarray(stored.shape, plain, memoryview(self._pages), stored.offset)
        values = np.empty(stored.shape, plain or np.float32)
        if plain is None:
            self._container.dequantize(stored.name, 0, values.reshape(-1).data)
        else:
            self._container.read([(stored.offset, values.reshape(-1).view(np.uint8).data)])
        return values

    def raw(self, name: str) -> memoryview:
        """The stored bytes, read-only."""
        info = self.info(name)
        return memoryview(self._pages)[info.offset : info.offset + info.nbytes].toreadonly()

    def slice(self, name: str) -> TensorSlice:
        """Part of a tensor: `f.slice(name)[5:9, :64]` reads those rows alone, into memory of their own.

        Raises:
            KeyError: no such tensor; names close matches.
        """
        from apr.container.slice import TensorSlice

        return TensorSlice(self._container, self._stored(name))

    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """A state dict in memory of its own, read by position and in parallel: the fast way to a device.

        Args:
            device: where the tensors go; to a CUDA device through a small ring of page-locked buffers.
            dtype: what floating-point tensors become; by default they stay as stored, quantized ones
                become float32.
            names: which tensors, in this order; by default all of them.

        Raises:
            KeyError: no such tensor; names close matches.
            TruncatedError: the file was cut short since it was opened.
            TypeError: `names` is one name, or `dtype` is none of torch's.
            DeviceError: there is no such device.
        """
        from apr.container.to_device import to_device

        if isinstance(names, str):
            raise TypeError(f"names must be several, not one text: [{names!r}]")
        stored = {name: self._stored(name) for name in (self if names is None else names)}
        return to_device(self._container, stored, device, dtype)

    def info(self, name: str) -> TensorInfo:
        """What the index says of the tensor."""
        entry = self._entry(name)
        if entry is None:
            raise self._missing(name)
        return TensorInfo(name, *entry)

    # the file

    @property
    def path(self) -> str:
        """The path that was opened."""
        return self._path

    @cached_property
    def header(self) -> Header:
        """The header's fields."""
        fields = self._container.header()
        assert fields is not None  # only version 1 has none, and V1File gives its own
        magic, version, flags, *rest = fields
        return Header(magic, version, Flags(flags), *rest)  # type: ignore[arg-type]

    @cached_property
    def metadata(self) -> Metadata:
        """The metadata, key order kept; of duplicate keys the last wins. Read at the first use.

        Raises:
            FormatError: they are no JSON object within the format's limits; with path and byte.
            TruncatedError: the file was cut short since it was opened.
        """
        import json

        return Metadata(json.loads(self._container.metadata()))

    @property
    def form(self) -> str:
        """Which form of the format it is, in words such as "APR v2" or "APR1 JSON"."""
        return self._container.form

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._container.size

    @property
    def footer(self) -> int | None:
        """The CRC32 at the end, as stored; None in an old file without one."""
        return self._container.footer

    def verify(self) -> Report:
        """Check every byte anew; never raises for what it finds."""
        from apr.container.verify import report

        return report(self._path, self._container.verify(None))

    def close(self) -> None:
        """Let go of the file. What was taken from it stays: tensors; names, header, metadata once read."""
        self._open = self._mapped = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self)} tensors" if self._open else "closed"
        return f"<{type(self).__name__} {self._path!r}: {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        return load, (self._absolute,)

    def require_tensors(self) -> None:
        """Refuse a file whose values are not tensors: of some v1 files only the payload's bytes are known.

        Raises:
            UnsupportedError: it is such a file.
        """

    def _stored(self, name: str) -> TensorInfo:
        """The tensor whose bytes are this one's values: itself, or the embedding for an empty head."""
        info = self.info(name)
        return self.info(self._container.stored(name)) if info.tied else info

    @property
    def _container(self) -> Container:
        if self._open is None:
            raise ValueError(f"{self._path}: the file is closed")
        return self._open

    @property
    def _pages(self) -> Pages:
        pages = self._mapped
        if pages is None:  # asked once: another thread may close the file meanwhile
            pages = self._mapped = self._container.map()
        return pages

    @cached_property
    def _from_dlpack(self) -> Callable[[object], torch.Tensor]:
        from torch.utils.dlpack import from_dlpack

        return from_dlpack

    def _entry(self, name: str) -> tuple[str, tuple[int, ...], int, int] | None:
        try:
            return self._container.info(name)
        except UnicodeEncodeError:  # a lone surrogate
            return None

    def _missing(self, name: object) -> KeyError:
        from bisect import bisect
        from difflib import get_close_matches

        text, names = str(name), list(self)
        at = max(0, min(bisect(names, text) - _COMPARED // 2, len(names) - _COMPARED))
        close = get_close_matches(text, names[at : at + _COMPARED], n=3) if len(text) <= _LONGEST_NAME else []
        hint = f"; close: {', '.join(close)}" if close else ""
        return KeyError(f"{self._path}: no tensor {name!r}{hint}")

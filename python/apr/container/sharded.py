"""A model in several files, opened as one mapping."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apr._core import verify_file
from apr.container.file import AprFile
from apr.container.header import Flags, Header, TensorInfo
from apr.container.mapped_file import with_dtypes_check
from apr.container.metadata import SHARDING, Metadata
from apr.container.report import Check, Report
from apr.container.shard_index import read_index, refuse_index
from apr.container.tensor_file import TensorFile
from apr.errors import AprError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    import numpy as np
    import torch

    from apr.container.slice import TensorSlice

# The tensor whose values an empty output head shares. It may be in another file than the head.
_EMBEDDING = "model.embed_tokens.weight"


class ShardedFile(TensorFile):
    """A model in several files: a mapping from tensor names to tensors, in name order. Made by `apr.load`.

    `info(name).offset` counts from the start of the tensor's own file, which `file_of(name)` returns.
    `header` is the first file's, with the tensor count of all files; `metadata` is the first file's without
    the key `sharding`. `footer` is None, because each file has its own.
    """

    def __init__(
        self, path: str | PathLike[str], *, verify: Literal["structure", "full"] = "structure"
    ) -> None:
        super().__init__(path)
        index = Path(path)
        weight_map = read_index(index)
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(AprFile(index.with_name(name)))
                for name in sorted(set(weight_map.values()))
            }
            if verify == "full":
                for file in files.values():
                    file.check_all_bytes()
            self._files = _in_order(index, files)
            _check_names(index, weight_map, files)
            stack.pop_all()  # all files are fine: they stay open
        # In the order of UTF-8 bytes, as in the index of one file.
        names = sorted(weight_map, key=lambda name: name.encode())
        self._file_of = {name: files[weight_map[name]] for name in names}
        self._closed = False

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self._stored(name)
        return self.file_of(stored)[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._file_of

    def info(self, name: str) -> TensorInfo:
        return self.file_of(name).info(name)

    def numpy(self, name: str) -> np.ndarray:
        stored = self._stored(name)
        return self.file_of(stored).numpy(stored)

    def raw(self, name: str) -> memoryview:
        return self.file_of(name).raw(name)

    def slice(self, name: str) -> TensorSlice:
        stored = self._stored(name)
        return self.file_of(stored).slice(stored)

    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
        *,
        allow_overflow: bool = False,
    ) -> dict[str, torch.Tensor]:
        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, not a string; pass [{names!r}]")
        stored = {name: self._stored(name) for name in (self if names is None else names)}
        by_file = defaultdict(list)
        # Each stored tensor is read once, even if a tied head asks for it a second time.
        for name in dict.fromkeys(stored.values()):
            by_file[self.file_of(name)].append(name)
        tensors: dict[str, torch.Tensor] = {}
        for file, in_file in by_file.items():
            tensors |= file.to_torch(device, dtype, in_file, allow_overflow=allow_overflow)
        return {name: tensors[source] for name, source in stored.items()}

    @property
    def is_sharded(self) -> bool:
        return True

    @property
    def files(self) -> tuple[AprFile, ...]:
        """The files, in the order of their `shard_index`."""
        return self._files

    def file_of(self, name: str) -> AprFile:
        if self._closed:
            raise ValueError(f"{self._path}: the files are closed")
        file = self._file_of.get(name)
        if file is None:
            raise self._missing(name)
        return file

    @cached_property
    def header(self) -> Header:
        """The header of the first file, with the tensor count of all files."""
        return replace(self._files[0].header, tensor_count=len(self))

    @cached_property
    def metadata(self) -> Metadata:
        return Metadata({key: value for key, value in self._files[0].metadata.items() if key != SHARDING})

    @property
    def form(self) -> str:
        return self._files[0].form

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self._files)

    @property
    def footer(self) -> None:
        return

    def header_facts(self) -> dict[str, object]:
        # Each file has its own checksums; those of the first would look like those of the model.
        return self._files[0].header_facts() | {"header_checksum": None, "footer_checksum": None}

    def verify(self) -> Report:
        return verify_sharded(self._path)

    def close(self) -> None:
        self._closed = True
        for file in self._files:
            file.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} tensors in {len(self._files)} files"
        return f"<ShardedFile {self._path!r}: {state}>"

    def _stored(self, name: str) -> str:
        """Return the tensor that holds the values: an empty head may be tied to another file's embedding."""
        info = self.info(name)
        if not info.tied:
            return name
        if _EMBEDDING not in self or self.info(_EMBEDDING).shape != info.shape:
            path = self.file_of(name).path
            raise FormatError(
                f"{path}: tensor {name!r} (byte {info.offset}) is stored without bytes, as a copy of "
                f"{_EMBEDDING!r}, but no file has a tensor of that name with the shape {list(info.shape)}",
                path=path,
                tensor=name,
                offset=info.offset,
            )
        return _EMBEDDING


def verify_sharded(
    path: str | PathLike[str], on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check an index and every byte of the files that it names, in one report.

    The report ends at the first file that does not open.

    Args:
        path: the index.
        on_progress: called with the bytes that have been read and the bytes in all files.

    Raises:
        OSError: the index or one of its files cannot be read.
    """
    name, index = os.fspath(path), Path(path)
    try:
        weight_map = read_index(index)
    except AprError as error:
        return Report(name, opened=False, checks=(failed_index_check(error),))
    files = sorted(set(weight_map.values()))
    checks = [Check("index", True, f"{index.name}: {len(weight_map)} tensors in {len(files)} files")]
    sizes = {file: index.with_name(file).stat().st_size for file in files}
    done, total = 0, sum(sizes.values())
    for file in files:
        file_progress = None if on_progress is None else _offset_progress(on_progress, done, total)
        part = Report.from_findings(file, verify_file(index.with_name(file), file_progress))
        if part.opened:
            with AprFile(index.with_name(file)) as opened:
                part = with_dtypes_check(part, opened)
        done += sizes[file]
        checks += [replace(check, detail=f"{file}: {check.detail}") for check in part.checks]
        if not part.opened:
            return Report(name, opened=False, checks=tuple(checks))
    try:
        ShardedFile(index).close()  # checks that the index and the files agree
    except AprError as error:
        return Report(name, opened=False, checks=(*checks, failed_index_check(error)))
    return Report(name, opened=True, checks=tuple(checks))


def failed_index_check(error: AprError) -> Check:
    """Return the failed check of an index that does not open."""
    return Check("index", False, str(error), error.tensor, error.offset)


def _offset_progress(on_progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int], None]:
    return lambda read: on_progress(done + read, total)


def _in_order(index: Path, files: dict[str, AprFile]) -> tuple[AprFile, ...]:
    """Return the files by their `shard_index`, after checking that the set is complete."""
    places: dict[int, AprFile] = {}
    for name, file in files.items():
        # One key instead of all metadata: writers repeat the tokenizer, 12 MB, in every file.
        sharding = file.metadata_value(SHARDING)
        if Flags.SHARDED not in file.header.flags or not isinstance(sharding, dict):
            refuse_index(
                index,
                f"{name} is not marked as a shard; it needs the flag SHARDED and the metadata key "
                f"{SHARDING!r}",
            )
        count, place = sharding.get("shard_count"), sharding.get("shard_index")
        # `type`, because True is an int and equals 1.
        if type(count) is not int or count != len(files):
            refuse_index(index, f"{name} has shard_count {count!r}, but the index lists {len(files)} files")
        # Some writers count from 0, others from 1.
        if type(place) is not int or not 0 <= place <= count:
            refuse_index(index, f"{name} has shard_index {place!r}, which is invalid for {count} files")
        if place in places:
            other = Path(places[place].path).name
            refuse_index(index, f"{name} and {other} have the same shard_index {place}")
        places[place] = file
    if 0 in places and len(files) in places:
        refuse_index(
            index,
            f"shard_index must count from 0 or from 1, but runs from 0 to {len(files)} in {len(files)} files",
        )
    return tuple(file for _, file in sorted(places.items()))


def _check_names(index: Path, weight_map: dict[str, str], files: dict[str, AprFile]) -> None:
    """Check that the index and the files agree on where each tensor is."""
    # In both directions: a tensor that the index leaves out is as wrong as one that it misplaces.
    for tensor, name in weight_map.items():
        if tensor not in files[name]:
            refuse_index(
                index, f"tensor {tensor!r} is missing from {name}, where the index places it", tensor
            )
    for name, file in files.items():
        for tensor in file:
            indexed = weight_map.get(tensor)
            if indexed is None:
                refuse_index(index, f"tensor {tensor!r} of {name} is missing from the index", tensor)
            if indexed != name:
                refuse_index(
                    index, f"tensor {tensor!r} is in {name}, but the index places it in {indexed}", tensor
                )

"""A model in several files: an index says which file has which tensor, and all are one mapping."""

from __future__ import annotations

import errno
import json
import os
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack

from apr._core import verify_file
from apr.container.file import AprFile, Flags, Header, TensorInfo, load
from apr.container.legacy.keys import refuse
from apr.container.metadata import SHARDING, Metadata
from apr.container.verify import Check, Report, report, verify
from apr.errors import AprError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    import numpy as np
    import torch

    from apr.container.legacy.keys import Keys
    from apr.container.slice import TensorSlice

# Ends the name of an index; the name before it is the model's.
INDEX_SUFFIX = ".apr.index.json"
# Larger than that of any model, so that a wrong file is not read into memory.
_LARGEST_INDEX = 64 << 20
# The tensor that an empty head stands for.
_EMBEDDING = "model.embed_tokens.weight"


def load_several(
    path: str | PathLike[str],
    *,
    verify: Literal["structure", "full"] = "structure",
    **keys: Unpack[Keys],
) -> AprFile:
    """Open the files that an index names, or the index or the one file in a directory, as one mapping.

    Raises:
        IsADirectoryError: a directory with neither one index nor exactly one .apr file.
        FormatError: an index that is none, or that does not fit its files.
        AprError: one of the files does not open, or there is a key.
        FileNotFoundError: a file that the index names is not there.
    """
    found = _found(Path(path))
    if found.name.endswith(".apr"):
        return load(found, verify=verify, **keys)
    refuse(found, keys)
    return ShardedFile(found, verify=verify)


class ShardedFile(AprFile):
    """Names to tensors over several files, in name order. Made by `apr.load` of an index or a directory.

    It is used as an `AprFile` is. `info(name).offset` counts in the tensor's own file, which `file_of`
    gives; `header` is the first file's, with the tensors of all; `metadata` are the first file's without
    `sharding`; `nbytes` is the length of all files; there is no one `footer`.

    Attributes:
        files: the files in the order of their `shard_index`.
    """

    def __init__(
        self, path: str | PathLike[str], *, verify: Literal["structure", "full"] = "structure"
    ) -> None:
        self._path = os.fspath(path)
        self._absolute = os.path.abspath(self._path)  # noqa: PTH100 (as in an AprFile)
        index = Path(path)
        weight_map = _read_index(index)
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(AprFile(index.with_name(name)))
                for name in sorted(set(weight_map.values()))
            }
            if verify == "full":
                for file in opened.values():
                    file._container.check_rest()  # noqa: SLF001 (a subclass)
            self.files = _in_order(index, opened)
            _check_names(index, weight_map, opened)
            stack.pop_all()
        self._homes = {
            name: opened[weight_map[name]] for name in sorted(weight_map, key=lambda name: name.encode())
        }
        self._closed = False

    # the mapping

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor, on the pages of its file; errors as in `AprFile`."""
        stored = self._values(name)
        return self.file_of(stored)[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._homes

    # other forms of a tensor

    def numpy(self, name: str) -> np.ndarray:
        """The tensor as a NumPy array on the pages of its file."""
        stored = self._values(name)
        return self.file_of(stored).numpy(stored)

    def raw(self, name: str) -> memoryview:
        """The stored bytes, read-only."""
        return self.file_of(name).raw(name)

    def slice(self, name: str) -> TensorSlice:
        """Part of a tensor, as `AprFile.slice`."""
        stored = self._values(name)
        return self.file_of(stored).slice(stored)

    def to_torch(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        names: Iterable[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """A state dict in memory of its own, as `AprFile.to_torch`."""
        if isinstance(names, str):
            raise TypeError(f"names must be several, not one text: [{names!r}]")
        stored = {name: self._values(name) for name in (self if names is None else names)}
        by_file = defaultdict(list)
        for name in dict.fromkeys(stored.values()):
            by_file[self.file_of(name)].append(name)
        found: dict[str, torch.Tensor] = {}
        for file, wanted in by_file.items():
            found |= file.to_torch(device, dtype, wanted)
        return {name: found[values] for name, values in stored.items()}

    def info(self, name: str) -> TensorInfo:
        """What the index of the tensor's file says of it."""
        return self.file_of(name).info(name)

    # the files

    def file_of(self, name: str) -> AprFile:
        """The file that has the tensor.

        Raises:
            KeyError: no such tensor; names close matches.
        """
        if self._closed:
            raise ValueError(f"{self._path}: the files are closed")
        file = self._homes.get(name)
        if file is None:
            raise self._missing(name)
        return file

    @cached_property
    def header(self) -> Header:
        """The first file's header, with the tensors of all files."""
        return replace(self.files[0].header, tensor_count=len(self))

    @cached_property
    def metadata(self) -> Metadata:
        """The first file's metadata, without `sharding`."""
        return Metadata({key: value for key, value in self.files[0].metadata.items() if key != SHARDING})

    @property
    def form(self) -> str:
        """Which form of the format the first file is, in words."""
        return self.files[0].form

    @property
    def nbytes(self) -> int:
        """Length of all files together."""
        return sum(file.nbytes for file in self.files)

    @property
    def footer(self) -> None:
        """None: each of the `files` has its own."""
        return

    def verify(self) -> Report:
        """Check every byte of every file anew; never raises for what it finds."""
        return verify_several(self._path)

    def close(self) -> None:
        """Let go of the files. Tensors that were taken from them stay valid."""
        self._closed = True
        for file in self.files:
            file.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} tensors in {len(self.files)} files"
        return f"<ShardedFile {self._path!r}: {state}>"

    def _values(self, name: str) -> str:
        """The tensor whose values are this one's: an empty head may be tied to another file's embedding."""
        info = self.info(name)
        if not info.tied:
            return name
        if _EMBEDDING not in self or self.info(_EMBEDDING).shape != info.shape:
            path = self.file_of(name).path
            raise FormatError(
                f"{path}: tensor {name!r} (byte {info.offset}) is empty under the shape {list(info.shape)}, "
                f"which ties it to {_EMBEDDING!r}, but no file has a tensor of that name and shape",
                path=path,
                tensor=name,
                offset=info.offset,
            )
        return _EMBEDDING


def verify_several(
    path: str | PathLike[str], on_progress: Callable[[int, int], None] | None = None, **keys: Unpack[Keys]
) -> Report:
    """Check an index and every byte of its files: one report, which ends at a file that does not open.

    Args:
        path: the index, or its directory.
        on_progress: called with the bytes read so far and the bytes in all.
        keys: a model in several files has none.

    Raises:
        OSError: as `open` would, of the index as of its files.
    """
    found = _found(Path(path))
    if found.name.endswith(".apr"):
        return replace(verify(found, on_progress=on_progress, **keys), path=os.fspath(path))
    name = os.fspath(path)
    try:
        refuse(found, keys)
        weight_map = _read_index(found)
    except AprError as error:
        return Report(name, opened=False, checks=(_failed(error),))
    files = sorted(set(weight_map.values()))
    checks = [Check("index", True, f"{found.name}: {len(weight_map)} tensors in {len(files)} files")]
    sizes = {file: found.with_name(file).stat().st_size for file in files}
    done, total = 0, sum(sizes.values())
    for file in files:
        tell = None if on_progress is None else _after(done, total, on_progress)
        one = report(file, verify_file(found.with_name(file), tell))
        done += sizes[file]
        checks += [replace(check, detail=f"{file}: {check.detail}") for check in one.checks]
        if not one.opened:
            return Report(name, opened=False, checks=tuple(checks))
    try:
        ShardedFile(found).close()
    except AprError as error:
        return Report(name, opened=False, checks=(*checks, _failed(error)))
    return Report(name, opened=True, checks=tuple(checks))


def _after(done: int, total: int, on_progress: Callable[[int, int], None]) -> Callable[[int], None]:
    return lambda read: on_progress(done + read, total)


def _failed(error: AprError) -> Check:
    return Check("index", False, str(error), error.tensor, error.offset)


def _found(path: Path) -> Path:
    """The index, or the one file, that a directory stands for."""
    if not path.is_dir():
        return path
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208 (names)
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(".apr")]
    candidates = indices or files
    if not candidates:
        said = f"a directory with neither an index (*{INDEX_SUFFIX}) nor an .apr file"
        raise IsADirectoryError(errno.EISDIR, said, os.fspath(path))
    if len(candidates) > 1:
        said = f"a directory with {len(indices)} indices (*{INDEX_SUFFIX}) and {len(files)} .apr files"
        raise IsADirectoryError(errno.EISDIR, f"{said}: name the one to open", os.fspath(path))
    return path / candidates[0]


def _read_index(path: Path) -> dict[str, str]:
    """Tensor to file name, from the index at `path`; each is a file in its directory."""
    weight_map = _parse_index(path)
    directory = Path(os.path.realpath(path.parent))
    for name in dict.fromkeys(weight_map.values()):
        if "/" in name or not name.isprintable() or not name.endswith(".apr"):
            _refuse(path, f"{name!r} is no plain name of an .apr file")
        file = path.with_name(name)
        if not os.path.lexists(file):
            raise FileNotFoundError(errno.ENOENT, f"no such file, but {path.name} names it", os.fspath(file))
        if Path(os.path.realpath(file)).parent != directory:
            _refuse(path, f"{name!r} is a link out of the directory")
    return weight_map


def _parse_index(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        text = file.read(_LARGEST_INDEX + 1)
    if len(text) > _LARGEST_INDEX:
        _refuse(path, "larger than 64 MiB: no index")
    try:
        index = json.loads(text.decode(), object_pairs_hook=_without_repeats)
    except _RepeatedError as error:
        _refuse(path, f"the key {error.args[0]!r} stands there twice")
    except (ValueError, RecursionError) as error:
        _refuse(path, f"no JSON: {type(error).__name__}: {error}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(path, 'no index: it must hold {"weight_map": {tensor: file}} with at least one tensor')
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            _refuse(path, f"tensor {tensor!r}: the file must be a name, not {name!r}", tensor)
    return weight_map


class _RepeatedError(Exception):
    """A key that an object has twice."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedError(key)
        found[key] = value
    return found


def _in_order(index: Path, opened: dict[str, AprFile]) -> tuple[AprFile, ...]:
    """The files by their `shard_index`, which together are all that there are."""
    places: dict[int, AprFile] = {}
    for name, file in opened.items():
        # Alone: other writers repeat the metadata, a tokenizer and all, in every file.
        member = file._container.member(SHARDING)  # noqa: SLF001 (a subclass)
        sharding = None if member is None else json.loads(member)
        if Flags.SHARDED not in file.header.flags or not isinstance(sharding, dict):
            _refuse(
                index,
                f"{name} does not say that it is one of several: flag SHARDED and metadata {SHARDING!r}",
            )
        count, place = sharding.get("shard_count"), sharding.get("shard_index")
        if type(count) is not int or count != len(opened):
            _refuse(index, f"{name} is one of {count!r} files, but the index names {len(opened)}")
        if type(place) is not int or not 0 <= place <= count:
            _refuse(index, f"{name} has shard_index {place!r}, which is none of {count} files")
        if place in places:
            _refuse(index, f"{name} has shard_index {place}, as {os.path.basename(places[place].path)} has")  # noqa: PTH119
        places[place] = file
    if 0 in places and len(opened) in places:  # counted from 0 by some writers, from 1 by others
        _refuse(index, f"shard_index goes from 0 to {len(opened)}, one too far")
    return tuple(file for _, file in sorted(places.items()))


def _check_names(index: Path, weight_map: dict[str, str], opened: dict[str, AprFile]) -> None:
    """The index and the files say the same of where each tensor is."""
    for tensor, name in weight_map.items():
        if tensor not in opened[name]:
            _refuse(index, f"tensor {tensor!r} is to be in {name}, which has none of that name", tensor)
    for name, file in opened.items():
        for tensor in file:
            if weight_map.get(tensor) != name:
                said = (
                    f"the index says {weight_map[tensor]}" if tensor in weight_map else "the index lacks it"
                )
                _refuse(index, f"tensor {tensor!r} is in {name}, but {said}", tensor)


def _refuse(path: Path, what: str, tensor: str | None = None) -> NoReturn:
    raise FormatError(f"{path}: {what}", path=path, tensor=tensor)

"""Open safetensors files: one, several with their index, or the model of a transformers directory."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.dtypes import NUMPY
from apr.container.header import TensorInfo
from apr.container.metadata import HF_CONFIG
from apr.container.report import Check
from apr.convert.from_safetensors import from_texts, read_contents, read_index, read_values
from apr.convert.hf_files import CONFIG
from apr.convert.stream import read_json_object
from apr.errors import UnsupportedError
from apr.formats.foreign import ForeignFile, StoredTensor, no_checksum
from apr.plurals import counted

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.convert.from_safetensors import Contents, Entry

FORM = "safetensors"


def open_safetensors(path: Path, shown: str, directory: Path | None) -> ForeignFile:
    """Open a file or an index.

    Args:
        path: the file or the index.
        shown: the path that the user gave.
        directory: the directory that the user gave instead of the file. Its config.json describes the model.

    Raises:
        FormatError: the structure of a file is invalid, or the index does not match the files.
        TruncatedError: a file ends before its tensors do.
        UnsupportedError: a tensor has an unknown dtype.
        OSError: a file cannot be read.
    """
    is_index = path.name.endswith(".json")
    files = read_index(path) if is_index else {path: read_contents(path)}
    texts: dict[str, str] = {}
    for contents in files.values():
        texts = contents.texts | texts
    metadata, config = from_texts(texts), {}
    if directory is not None and (directory / CONFIG).is_file():
        config = read_json_object(directory / CONFIG)
        metadata = metadata | {HF_CONFIG: config}
    return ForeignFile(
        shown,
        form=FORM,
        version=None,
        files={str(file): contents.size for file, contents in files.items()},
        metadata=metadata,
        config={"architecture": config.get("model_type")} | config,
        tensors=[_stored(file, entry) for file, contents in files.items() for entry in contents.entries],
        checks=_checks(path, files, is_index=is_index),
    )


def _checks(path: Path, files: dict[Path, Contents], *, is_index: bool) -> list[Check]:
    checks = []
    if is_index:
        checks.append(_index_check(path, files))
    for file, contents in files.items():
        of_file = f"{file.name}: " if is_index else ""
        checks.append(
            Check(
                "header",
                True,
                f"{of_file}{contents.header_size:,} bytes, {counted(len(contents.entries), 'tensor')}",
            )
        )
        checks.append(
            Check(
                "tensor data",
                True,
                f"{of_file}{contents.size - contents.header_size:,} bytes, every tensor has the bytes of its "
                "dtype and shape, none overlap, no gap, none left over",
            )
        )
    return [*checks, no_checksum(FORM)]


def _index_check(path: Path, files: dict[Path, Contents]) -> Check:
    """Check what a reader tolerates: tensors of the files that the index does not list."""
    listed = read_json_object(path)["weight_map"]
    for file, contents in files.items():
        for entry in contents.entries:
            if entry.name not in listed:
                problem = f"{path.name}: tensor {entry.name} of {file.name} is missing from the index"
                return Check("index", False, problem, entry.name)
    detail = (
        f"{path.name}: {counted(len(listed), 'tensor')} in {counted(len(files), 'file')}, as they hold them"
    )
    return Check("index", True, detail)


def _stored(path: Path, entry: Entry) -> StoredTensor:
    name = entry.dtype.lower()
    dtype = NUMPY.get(name)

    def flat(start: int, stop: int) -> NDArray[Any]:
        if dtype is None:
            raise UnsupportedError(
                f"{path}: {entry.name} has dtype {entry.dtype}, whose values are not read",
                path=path,
                tensor=entry.name,
            )
        with path.open("rb") as file:
            return read_values(file, entry, dtype, start, min(stop, prod(entry.shape)))

    return StoredTensor(
        TensorInfo(entry.name, name, entry.shape, entry.nbytes, entry.offset), str(path), flat
    )

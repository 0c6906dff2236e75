"""`apr.seal`: record the size and checksums of model files in `apr-seal.json` beside them, and check them.

A checksum is a CRC32 (as in zlib). It finds every change of up to 32 bits in a row and nearly every other
accident; somebody who wants to can make a change that keeps it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from apr._core import checksums
from apr.container.report import Check
from apr.container.tensor_file import TensorFile
from apr.errors import AprError, ChecksumError, FormatError, UnsupportedError
from apr.files import write_json
from apr.formats.open import format_of, open_model
from apr.held import held
from apr.path_arguments import as_path
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    OnProgress = Callable[[int, int], None]

SEAL = "apr-seal.json"
_FORMAT, _VERSION = "apr-seal", 1
# Far above the seal of any model (100 bytes a tensor), so that a wrong file is not read into memory.
_LARGEST_SEAL = 256 << 20
# Changed tensors that a report names; the others are counted.
_MAX_NAMED = 20
# The CRC32 of any bytes that end with their own CRC32, as .apr files do.
_CRC_OF_BYTES_WITH_CRC = 0x2144_DF1C
_CRC = re.compile(r"0x[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class SealedTensor:
    """Where a tensor is in its file, in bytes, and the CRC32 of its bytes."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class SealedFile:
    """The record of a file.

    Attributes:
        size: the bytes of the file.
        crc32: CRC32 of the whole file.
        rest_crc32: CRC32 of the bytes outside all tensors, in their order. An .apr file ends with its own
            CRC32, so that `crc32` is the same for all of them, and does not tell a change of the header.
        tensors: the tensors by their names in the file; none of a file that is not a model, or whose tensors
            are compressed or encrypted.
    """

    size: int
    crc32: int
    rest_crc32: int
    tensors: dict[str, SealedTensor]


@dataclass(frozen=True, slots=True)
class Seal:
    """The records of files, by their names.

    Attributes:
        path: the file that holds the records, in the directory of the files.
        files: the records.
    """

    path: Path
    files: dict[str, SealedFile]


def seal(path: str | PathLike[str], *, on_progress: OnProgress | None = None) -> Seal:
    """Record the size and checksums of a file, of an index and its files, or of all files of a directory.

    The records are added to `apr-seal.json` in the same directory; those of other files stay. Hidden files
    and subdirectories are left out.

    Args:
        path: the file, index or directory.
        on_progress: called from time to time with the bytes that have been read and the bytes in all. An
            exception that it raises ends the work and leaves an earlier seal unchanged.

    Returns:
        The records that were made.

    Raises:
        AprError: a model file is damaged, or an existing seal is; the error has the path, tensor and byte.
        RefusedError: another process is sealing files in this directory.
        FileNotFoundError: there is no such file, or the directory has no files.
        OSError: a file cannot be read, or the seal cannot be written.
    """
    given = Path(as_path(path))
    directory = given if given.is_dir() else given.parent
    paths = [directory / name for name in _names(given)]
    if not paths:
        raise FileNotFoundError(2, "the directory has no files to seal", os.fspath(path))
    sizes = [file.stat().st_size for file in paths]
    files = {
        file.name: _seal_file(file, tell)
        for file, tell in zip(paths, _shares(on_progress, sizes), strict=True)
    }
    target = directory / SEAL
    with held(directory, "another process", "wait until it has finished"):
        before = read_seal(target).files if target.exists() else {}
        _write(Seal(target, before | files))
    return Seal(target, files)


def read_seal(path: Path) -> Seal:
    """Read the records of a directory.

    Raises:
        FormatError: the file is not a valid seal.
        UnsupportedError: the seal has a newer version.
        OSError: the file cannot be read.
    """
    if not path.is_file() and path.exists():  # opening a named pipe would wait for a writer
        _refuse(path, "not a regular file")
    with path.open("rb") as file:
        # One byte more than the limit tells that the file is larger, without reading the rest.
        text = file.read(_LARGEST_SEAL + 1)
    if len(text) > _LARGEST_SEAL:
        _refuse(path, "too large for a seal")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"invalid JSON: {error}")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        _refuse(path, f'not a seal: "format" must be "{_FORMAT}"')
    if content.get("version") != _VERSION:
        raise UnsupportedError(
            f"{path}: the seal has version {str(content.get('version'))[:20]}; supported: {_VERSION}",
            path=path,
        )
    files = content.get("files")
    if not isinstance(files, dict):
        _refuse(path, '"files" must be an object')
    return Seal(path, {name: _parse_file(path, name, record) for name, record in files.items()})


def check_files(seal: Seal, path: Path, on_progress: OnProgress | None = None) -> list[Check]:
    """Check every byte of sealed files against their records.

    Args:
        seal: the records of the directory.
        path: a file or an index of the directory, whose files are checked; or the directory, for all of them.
        on_progress: called from time to time with the bytes that have been read and the bytes in all.

    Raises:
        OSError: a file exists but cannot be read.
    """
    directory = seal.path.parent
    names = _names(path)
    if path.is_dir():
        names = sorted({*names, *seal.files})
    sizes = [seal.files[name].size if name in seal.files else 0 for name in names]
    checks: list[Check] = []
    for name, tell in zip(names, _shares(on_progress, sizes), strict=True):
        record = seal.files.get(name)
        if record is None:
            checks.append(_check(None, f"{name} is not in {SEAL}; run apr seal to add it"))
        else:
            checks += _check_file(directory / name, record, tell)
    return checks


def _names(path: Path) -> list[str]:
    """Return the names of the files that a path stands for: its own, an index's, or all of a directory."""
    if path.is_dir():
        return sorted(
            entry.name
            for entry in os.scandir(path)
            if entry.is_file() and not entry.name.startswith(".") and entry.name != SEAL
        )
    names = {path.name}
    if path.name.endswith(".index.json"):
        try:
            weight_map = json.loads(path.read_bytes())["weight_map"]
            listed = {name for name in weight_map.values() if isinstance(name, str)}
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            listed = set()  # a damaged index, which other checks report
        names |= {name for name in listed if Path(name).name == name}
    return sorted(names)


def _shares(on_progress: OnProgress | None, sizes: list[int]) -> Iterator[Callable[[int], None] | None]:
    """Yield for each file a callback for the bytes read of it, which reports them among those of all."""
    done, total = 0, sum(sizes)
    for size in sizes:
        yield None if on_progress is None else _share(on_progress, done, total)
        done += size


def _share(on_progress: OnProgress, done: int, total: int) -> Callable[[int], None]:
    # A file that grows meanwhile is read past the size it had.
    return lambda read: on_progress(min(done + read, total), total)


def _seal_file(path: Path, on_progress: Callable[[int], None] | None) -> SealedFile:
    tensors, has_crc = _tensors(path)
    # In the order of their bytes, which `checksums` needs. Tied tensors have none.
    ordered = sorted((tensor for tensor in tensors if tensor[2]), key=lambda tensor: tensor[1])
    found = checksums(path, [(offset, size) for _, offset, size in ordered], on_progress)
    if has_crc and found.whole != _CRC_OF_BYTES_WITH_CRC:
        raise ChecksumError(
            f"{path}: the CRC32 at its end is wrong, so that it is not sealed; see apr verify", path=path
        )
    crcs = {name: crc for (name, _, _), crc in zip(ordered, found.parts, strict=True)}
    return SealedFile(
        found.size,
        found.whole,
        found.rest,
        {name: SealedTensor(offset, size, crcs.get(name, 0)) for name, offset, size in tensors},
    )


def _tensors(path: Path) -> tuple[list[tuple[str, int, int]], bool]:
    """Return name, first byte and size of the tensors of a file, and whether it ends with its own CRC32."""
    if path.suffix == ".json" or format_of(path) is None:
        return [], False
    with open_model(path) as file:
        has_crc = False
        if isinstance(file, TensorFile):
            # Of the other forms, the tensors are in something compressed or encrypted, or may be.
            if not file.form.startswith("APR v2") and file.form != "APR1 JSON":
                return [], False
            has_crc = file.form.startswith("APR v2") and file.footer is not None
        infos = [file.info(name) for name in file]
    return [(info.name, info.offset, info.nbytes) for info in infos], has_crc


def _check_file(path: Path, record: SealedFile, on_progress: Callable[[int], None] | None) -> list[Check]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return [_check(False, f"{path.name} is missing")]
    if size != record.size:
        problem = f"{path.name}: {size:,} bytes instead of {record.size:,}"
        return [_check(False, problem, offset=min(size, record.size))]
    stored = {name: tensor for name, tensor in record.tensors.items() if tensor.size}
    ordered = sorted(stored, key=lambda name: stored[name].offset)
    places = [(stored[name].offset, stored[name].size) for name in ordered]
    try:
        found = checksums(path, places, on_progress)
    except AprError as error:  # cut short while it was read
        return [_check(False, str(error), offset=error.offset)]
    changed = [name for name, crc in zip(ordered, found.parts, strict=True) if crc != stored[name].crc32]
    checks = [
        _check(
            False, f"{path.name}: tensor {name} has changed since it was sealed", name, stored[name].offset
        )
        for name in changed[:_MAX_NAMED]
    ]
    if len(changed) > _MAX_NAMED:
        more = counted(len(changed) - _MAX_NAMED, "more tensor")
        checks.append(_check(False, f"{path.name}: {more} changed"))
    if found.rest != record.rest_crc32:
        what = "the header, the metadata or the padding has" if record.tensors else "the file has"
        checks.append(_check(False, f"{path.name}: {what} changed since it was sealed"))
    if not checks and found.whole != record.crc32:
        checks.append(_check(False, f"{path.name}: the records in {SEAL} contradict each other"))
    if checks:
        return checks
    tensors = f" and {counted(len(record.tensors), 'tensor')}" if record.tensors else ""
    return [_check(True, f"{path.name}: {size:,} bytes{tensors} as sealed")]


def _check(
    passed: bool | None,  # noqa: FBT001 (a verdict)
    detail: str,
    tensor: str | None = None,
    offset: int | None = None,
) -> Check:
    return Check("seal", passed, detail, tensor, offset)


def _write(seal: Seal) -> None:
    files = {
        name: {
            "size": file.size,
            "crc32": f"{file.crc32:#010x}",
            "rest_crc32": f"{file.rest_crc32:#010x}",
            "tensors": {
                tensor: asdict(record) | {"crc32": f"{record.crc32:#010x}"}
                for tensor, record in file.tensors.items()
            },
        }
        for name, file in sorted(seal.files.items())
    }
    write_json(seal.path, {"format": _FORMAT, "version": _VERSION, "files": files})


def _parse_file(path: Path, name: str, record: object) -> SealedFile:
    # A hostile seal must not make a reader open files elsewhere.
    if Path(name).name != name or not _is_printable(name):
        _refuse(path, f"{name[:80]!r} is not the name of a file in this directory")
    if not isinstance(record, dict) or not isinstance(record.get("tensors"), dict):
        _refuse(path, f"the record of {name} is not valid")
    size = _number(path, name, record, "size")
    tensors = {
        tensor: SealedTensor(
            _number(path, name, entry, "offset"), _number(path, name, entry, "size"), _crc(path, name, entry)
        )
        for tensor, entry in record["tensors"].items()
    }
    end = 0
    for place in sorted((tensor for tensor in tensors.values() if tensor.size), key=lambda one: one.offset):
        if place.offset < end or place.offset + place.size > size:
            _refuse(path, f"the record of {name} has tensors that overlap or leave the file")
        end = place.offset + place.size
    return SealedFile(size, _crc(path, name, record), _crc(path, name, record, "rest_crc32"), tensors)


def _is_printable(name: str) -> bool:
    """Whether a name has no control characters. Bytes of other encodings than UTF-8 are none."""
    try:
        return os.fsencode(name).decode(errors="replace").isprintable()
    except UnicodeEncodeError:
        return False


def _number(path: Path, name: str, record: object, key: str) -> int:
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not int or not 0 <= value < 1 << 63:
        _refuse(path, f"the record of {name} has no valid {key}")
    return value


def _crc(path: Path, name: str, record: object, key: str = "crc32") -> int:
    text = record.get(key) if isinstance(record, dict) else None
    if not isinstance(text, str) or _CRC.fullmatch(text) is None:
        _refuse(path, f"the record of {name} has no valid {key}")
    return int(text, 16)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise FormatError(f"{path}: {problem}; seal the files again or remove it", path=path)

"""Small files that appear whole or not at all, and options in YAML."""

from __future__ import annotations

import errno
import fcntl
import math
import os
from contextlib import contextmanager, suppress

from apr.errors import UsageError

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, BinaryIO

    AnyPath = str | os.PathLike[str]  # text where pathlib, at 8 ms, would be the slowest part of a command


# What only writing is refused with.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: AnyPath, content: bytes | memoryview) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and give it its name.

    A process killed on the way leaves `.NAME.tmp`, which the next attempt overwrites. Of several that write
    the same name at once, each waits for the one before; the last one's content stays.

    Raises:
        OSError: the file cannot be written; what stood under the name before is untouched.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end, as `write_atomically`."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.tmp")  # noqa: PTH118
    try:
        with naming(path, temporary), _alone(temporary) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)  # noqa: PTH105
            except BaseException:  # Ctrl-C too
                with suppress(FileNotFoundError):
                    os.unlink(temporary)  # noqa: PTH108
                raise
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a full disk does not say which file had no room
        raise
    sync_directory(directory or os.curdir)


@contextmanager
def _alone(temporary: str) -> Iterator[BinaryIO]:
    """An empty file of this name, which no other writer has until it is renamed or removed.

    The kernel lets go of it when the process ends: what a killed one left is taken over.
    """
    while True:
        file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        with file:
            with suppress(OSError):  # a file system without locks: nothing to wait by
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, temporary):
                continue  # the writer before gave it its name
            try:
                file.truncate()
                yield file
            finally:
                # A process forked meanwhile has the file too, and would hold it for as long as it lives.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
            return


def _is_at(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


@contextmanager
def naming(path: AnyPath, temporary: AnyPath) -> Iterator[None]:
    """Errors of writing name what is to be written, where they name the temporary or nothing at all."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # Python's `write` gives none; nor does its `read`, of another file
            is_ours = error.errno in _NO_ROOM
        else:
            is_ours = os.fspath(error.filename).startswith(str(temporary))
        if is_ours:
            error.filename = str(path)
        raise


def sync_directory(path: AnyPath) -> None:
    """Make renames in a directory outlive a loss of power."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sync_file(path: Path) -> None:
    """Flush what was written to a file, through whatever handle, to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, as `json_text` has it."""
    write_atomically(path, (json_text(value, indent=2) + "\n").encode())


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinities, at any depth, are null."""
    import json

    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(below) for below in value]
    return value


def read_options(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping; an empty file holds an empty one.

    Raises:
        FileNotFoundError: no such file.
        UsageError: it holds anything else.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no YAML: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no mapping of names to values")
    return found

"""Files that appear whole or not at all, JSON that every reader accepts, and options in YAML."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager

from apr._core import AtomicFile
from apr.errors import UsageError

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, BinaryIO

    AnyPath = str | os.PathLike[str]  # text where pathlib, at 8 ms, would be the slowest part of a command


# Bytes in a name, on every file system in use.
_LONGEST_NAME = 255


def write_atomically(path: AnyPath, content: bytes | memoryview) -> None:
    """Write a file as a whole, in the way of `replacing`.

    Raises:
        OSError: the file cannot be written; a previous file of this name is unchanged.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends without an error.

    The content goes to a temporary file beside `path`, which is flushed to the disk and renamed at the end. A
    process killed at any moment leaves the old file or the new one; the temporary file is removed by the next
    writer of the same path. Several writers at once do not disturb each other: the last to finish wins. The
    new file has the permissions of the one it replaces, and a symbolic link keeps pointing to it.

    Raises:
        OSError: the file cannot be written; a previous file of this name is unchanged.
    """
    target = AtomicFile(path)
    try:
        with open(target.fileno(), "wb", closefd=False) as file:
            yield file
        target.commit()
    except OSError as error:
        # A full disk does not say which file had no room. Without an errno the text names the file already.
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise
    finally:
        target.abort()  # does nothing after `commit`


def path_of(file: BinaryIO) -> Path:
    """Return a path under which this and other processes can open a file that has no name, on Linux.

    It is valid as long as the file is open in this process.
    """
    from pathlib import Path

    return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


def beside(path: Path, suffix: str, prefix: str = "") -> Path:
    """Return a path beside another, with its name between `prefix` and `suffix`.

    A name that would be longer than file systems allow is cut, and a CRC32 keeps long names apart.
    """
    import zlib

    name = os.fsencode(path.name)
    room = _LONGEST_NAME - len(os.fsencode(prefix + suffix))
    if len(name) > room:
        # Bytes of a character that is cut in two stay as they are, as `os.fsdecode` has them.
        name = name[: room - 9] + b".%08x" % zlib.crc32(name)
    return path.with_name(f"{prefix}{os.fsdecode(name)}{suffix}")


def as_utf8(name: str) -> str:
    """Return a file name with bytes of another encoding than UTF-8 replaced, for metadata and pictures."""
    return os.fsencode(name).decode(errors="replace")


def sync_directory(path: AnyPath) -> None:
    """Flush a directory to the disk, so that renames in it survive a power failure."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sync_file(path: Path) -> None:
    """Flush a file to the disk, whoever wrote to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write a value as an indented JSON file, atomically."""
    write_atomically(path, (json_text(value, indent=2) + "\n").encode())


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON, with null in place of NaN and infinities, which JSON does not have."""
    import json

    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    # A run that diverged has NaN among its losses. Python would write it as NaN, which other parsers refuse.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_options(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping of option names to values. An empty file is an empty mapping.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is not valid YAML, or not a mapping.
    """
    from yaml import YAMLError

    from apr.yaml_numbers import parse_yaml

    try:
        options = parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: invalid UTF-8, impossible dates
        raise UsageError(f"{path}: invalid YAML: {error}", path=path) from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UsageError(f"{path}: not a mapping of option names to values", path=path)
    return options

"""The shard files of a directory: their names, their order, and which of them are not acceptable."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARD_NAME = re.compile(r"^shard-([0-9]{4,6})\.bin$")
# A shard is a flat array of little-endian 32-bit ids. The dtype is a string: numpy takes 80 ms to import, and
# listing a directory or rebuilding a manifest from file sizes does not need it.
ID_DTYPE: Final = "<u4"
ID_SIZE = 4


class Shard(NamedTuple):
    """One shard file.

    A directory may hold a million of them, so the path is put together on demand instead of being stored.
    """

    name: str
    directory: Path
    tokens: int

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.directory / self.name


def list_shards(path: str | os.PathLike[str]) -> list[Shard]:
    """Return the shards of a directory in stream order.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a file whose name, kind or size no shard can have; a gap in the numbering.
    """
    directory = Path(path)
    files = shard_files(directory)
    for name, size in files:
        if size == 0:
            raise RefusedError(
                f"{directory / name}: an empty shard: apr repair-manifest {path} --drop-empty moves it aside"
            )
        if size % ID_SIZE:
            whole = size - size % ID_SIZE
            raise RefusedError(
                f"{directory / name}: {size} bytes is no whole number of tokens, they end at byte {whole}: "
                f"apr repair-manifest {path} --truncate-torn cuts it there"
            )
    return [Shard(name, directory, size // ID_SIZE) for name, size in files]


def shard_files(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """The names of the shards of a directory in stream order, each with its size in bytes, whatever that is.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a name or kind that no shard can have; mixed widths; a gap in the numbering.
    """
    sizes: dict[str, int] = {}
    odd = set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".bin"):
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                if not entry.is_file(follow_symlinks=False):
                    odd.add(entry.name)
    names = sorted(sizes)
    if not names:
        raise RefusedError(f"{path}: no shards (shard-NNNNN.bin) in this directory")
    digits = max(0, len(names[0]) - len("shard-.bin"))
    expected = [f"shard-{number:0>{digits}}.bin" for number in range(len(names))]
    if odd or names != expected or not SHARD_NAME.match(names[-1]):
        name, reason = next(_oddities(names, expected, odd))
        raise RefusedError(f"{Path(path) / name}: {reason}")
    return [(name, sizes[name]) for name in names]


def _oddities(names: list[str], expected: list[str], odd: set[str]) -> Iterator[tuple[str, str]]:
    """Files that cannot be the shards that their places ask for, and why; at least one where there is any."""
    for number, (name, wanted) in enumerate(zip(names, expected, strict=True)):
        if not SHARD_NAME.match(name):
            yield name, "no shard's name (shard-NNNNN.bin): move it out of the directory"
        if name in odd:
            yield name, "not a regular file: put the shard itself there"
        if len(name) != len(names[0]):
            yield name, f"its number has another width than {names[0]}'s: rename them alike"
        if name != wanted:
            yield name, f"numbering has a gap, number {number} is missing"

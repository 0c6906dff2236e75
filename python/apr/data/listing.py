"""The shard files of a directory: their names, their order, and which of them are not acceptable."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from apr.errors import RefusedError
from apr.recognize import recognized, token_files

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
                f"{directory / name}: empty shard; move it aside with "
                f"apr repair-manifest {path} --drop-empty",
                path=directory / name,
            )
        # An encoder that dies in the middle of a write leaves such a shard, always the last one.
        if size % ID_SIZE:
            raise RefusedError(
                f"{torn_reason(directory / name, size)}truncate it with apr repair-manifest {path} "
                "--truncate-torn",
                path=directory / name,
            )
    return [Shard(name, directory, size // ID_SIZE) for name, size in files]


def torn_reason(path: Path, size: int) -> str:
    """Return what is wrong with a shard that ends within an id, up to where the remedy begins.

    Raises:
        RefusedError: it is not a shard at all. Cutting it would not make it one.
    """
    # Imported here, because it loads numpy, which is not needed for listing good shards.
    from apr.layout import foreign_layout, remedy

    layout = foreign_layout(path)
    if layout is not None:
        raise RefusedError(
            f"{path}: not little-endian 32-bit ids, but {layout}; {remedy(layout, str(path.parent))}",
            path=path,
        )
    return f"{path}: ends in the middle of an id, after byte {size - size % ID_SIZE} of {size}; "


def shard_files(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Return the names of the shards of a directory in stream order, each with its size in bytes.

    Sizes are not checked: a repair accepts what a reader does not.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a .bin file with another name or kind; numbers of different widths; a gap in
            the numbering.
    """
    sizes: dict[str, int] = {}
    not_files = set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".bin"):
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                if not entry.is_file(follow_symlinks=False):
                    not_files.add(entry.name)
    names = sorted(sizes)
    if not names:
        what = recognized(path)
        hint = f"; it is {what}" if what else ""
        raise RefusedError(f"{path}: contains no shards (shard-NNNNN.bin){hint}", path=path)
    # With equal widths, the order of the names is the order of the numbers. All names are compared at once,
    # because a directory may hold a million; which one is wrong, and why, is only looked for if one is.
    digits = max(0, len(names[0]) - len("shard-.bin"))
    expected = [f"shard-{number:0>{digits}}.bin" for number in range(len(names))]
    if not_files or names != expected or not SHARD_NAME.match(names[-1]):
        # Beside shards, a file with another name is in the wrong place.
        if not any(map(SHARD_NAME.match, names)) and (what := token_files(path)):
            raise RefusedError(f"{path}: {what}", path=path)
        name, reason = _first_problem(names, expected, not_files)
        raise RefusedError(f"{Path(path) / name}: {reason}", path=Path(path) / name)
    return [(name, sizes[name]) for name in names]


def _first_problem(names: list[str], expected: list[str], not_files: set[str]) -> tuple[str, str]:
    for number, (name, expected_name) in enumerate(zip(names, expected, strict=True)):
        if not SHARD_NAME.match(name):
            return name, "not the name of a shard (shard-NNNNN.bin); move it out of the directory"
        if name in not_files:
            return name, "not a regular file; replace it with the shard itself"
        if len(name) != len(names[0]):
            return name, f"its number has another width than that of {names[0]}; rename the shards alike"
        if name != expected_name:
            return name, f"the numbering has a gap, number {number} is missing"
    raise AssertionError("no problem")  # the caller has seen that there is one

"""Torn and empty shards at the end of a directory: what a repair cuts or moves, and what remains."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr.data.listing import ID_SIZE, Shard, shard_files, torn_reason
from apr.errors import RefusedError
from apr.files import sync_directory, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.data.scan import FullScan


@dataclass(frozen=True)
class ShardFixes:
    """Changes to files that turn a directory into a valid one. Nothing changes before `apply`."""

    shards: list[Shard]
    """The shards that the directory has after `apply`."""
    empty: list[Path]
    """Empty shards at the end, to be moved aside."""
    torn: dict[Path, int]
    """A last shard that ends within an id, with the byte at which its last whole id ends."""

    @classmethod
    def plan(cls, path: Path, *, drop_empty: bool, truncate_torn: bool) -> ShardFixes:
        """Decide what has to change, and refuse what is not allowed or cannot be repaired.

        Only the end of a directory can be repaired, because that is where an encoder was when it died. A
        hole in the middle would shift every id behind it.

        Raises:
            RefusedError: a torn or empty shard that is not at the end, or whose flag was not given; every
                shard is empty.
        """
        files = [(path / name, size) for name, size in shard_files(path)]
        torn = {file: size - size % ID_SIZE for file, size in files if size % ID_SIZE}
        whole_sizes = [size - size % ID_SIZE for _, size in files]
        last = max((i for i, size in enumerate(whole_sizes) if size), default=None)
        for file, size in files:
            if file not in torn:
                continue
            reason = torn_reason(file, size)
            if file != files[-1][0]:
                raise RefusedError(f"{reason}only the last shard can be truncated, so encode this one again")
            if not truncate_torn:
                raise RefusedError(f"{reason}pass --truncate-torn to remove the partial id")
        if last is None:
            raise RefusedError(
                f"{files[0][0]}: empty shard, and no other shard has any ids; encode the corpus again",
                path=files[0][0],
            )
        empty = [file for (file, _), size in zip(files, whole_sizes, strict=True) if not size]
        at_end = {file for file, _ in files[last + 1 :]}
        for file in empty:
            if file not in at_end:
                raise RefusedError(
                    f"{file}: empty shard between others; encode it again, or remove it and renumber "
                    "the rest",
                    path=file,
                )
            if not drop_empty:
                raise RefusedError(f"{file}: empty shard; pass --drop-empty to move it aside", path=file)
        shards = [
            Shard(file.name, path, size // ID_SIZE)
            for (file, _), size in zip(files[: last + 1], whole_sizes, strict=False)
        ]
        return cls(shards, empty, torn)

    @property
    def lines(self) -> tuple[str, ...]:
        """Descriptions of the changes, one line each."""
        cut = [
            f"{file.name}: cut at byte {end}, the rest is in {file.name}.torn"
            for file, end in self.torn.items()
        ]
        moved = [f"{file.name}: empty, moved aside as {file.name}.empty" for file in self.empty]
        return (*cut, *moved)

    def scan(
        self, *, vocab_size: int | None, hashes: bool, on_progress: Callable[[int, int], None] | None
    ) -> FullScan:
        """Scan the shards as they are after `apply`. A torn one is cut in a copy, so that no file changes."""
        import shutil
        from tempfile import TemporaryDirectory

        from apr.data.scan import scan_shards

        with TemporaryDirectory(prefix="apr-") as copies:
            readable = []
            for shard in self.shards:
                if shard.path in self.torn:
                    copy = Path(copies) / shard.name
                    shutil.copyfile(shard.path, copy)
                    os.truncate(copy, self.torn[shard.path])
                    readable.append(shard._replace(directory=copy.parent))
                else:
                    readable.append(shard)
            scan = scan_shards(readable, vocab_size=vocab_size, hashes=hashes, on_progress=on_progress)
            return self.with_current_times(scan)

    def with_current_times(self, scan: FullScan) -> FullScan:
        """Return the scan with the modification times that cut shards have now, not those of their copies."""
        torn = {file.name: file for file in self.torn}
        rows = []
        for row in scan.shards:
            if row.name in torn:
                status = torn[row.name].stat()
                row = replace(row, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)  # noqa: PLW2901
            rows.append(row)
        return replace(scan, shards=tuple(rows))

    def apply(self) -> None:
        """Cut and move. No byte is lost whenever the process is killed."""
        for file, end in self.torn.items():
            with file.open("r+b") as shard:
                shard.seek(end)
                # The rest is on the disk before the shard is cut.
                write_atomically(free_name(file.with_name(f"{file.name}.torn")), shard.read())
                shard.truncate(end)
                os.fsync(shard.fileno())
        for file in self.empty:
            file.rename(free_name(file.with_name(f"{file.name}.empty")))
            # Without the flush of the directory, a loss of power may undo the rename.
            sync_directory(file.parent)


def free_name(path: Path) -> Path:
    """Return the path, or the path with -2, -3, … behind its name if it is taken."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free

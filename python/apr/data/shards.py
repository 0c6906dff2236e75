"""A shard directory as one stream of token ids: listing, reading, scanning."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr._core import TokenStream
from apr.data.listing import ID_DTYPE, list_shards
from apr.data.manifest import MANIFEST, check_manifest, read_manifest, shard_rows, write_manifest
from apr.data.scan import Scan, kept_scan, scan_shards
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Keys of a manifest that two encodings of one corpus may differ in.
_VOLATILE = {"scan", "elapsed_seconds", "num_workers", "repaired_at"}


class ShardDir:
    """A shard directory with its manifest: one stream of `total_tokens` ids.

    Args:
        path: the directory.
        unfinished: whether the shards of an encoding that did not finish will do.

    Raises:
        FileNotFoundError: no such directory, or no manifest.
        RefusedError: shards or manifest are not what they should be; the message says what repairs them.
    """

    def __init__(self, path: str | os.PathLike[str], *, unfinished: bool = False) -> None:
        self.path = Path(path)
        self.shards = tuple(list_shards(self.path))
        self.manifest = read_manifest(self.path)
        unfinished = unfinished and self.manifest.get("complete") is False
        counted = self.manifest.get("shard_count")
        if unfinished and isinstance(counted, int):
            self.shards = self.shards[: max(counted, 0)]  # what its manifest knows of
        differences = check_manifest(self.manifest, self.shards)
        if differences:
            raise RefusedError(
                f"{self.path / MANIFEST}: {'; '.join(differences)}: "
                f"apr repair-manifest {self.path} --force rebuilds it"
            )
        if self.manifest.get("complete") is False and not unfinished:
            raise RefusedError(
                f"{self.path}: encoding did not finish: finish it with --resume, "
                f"or take what is there with apr repair-manifest {self.path}"
            )
        self._starts = [0, *accumulate(shard.tokens for shard in self.shards)]
        self._opened: tuple[int, TokenStream] | None = None

    @property
    def total_tokens(self) -> int:
        """Number of ids in the stream."""
        return self._starts[-1]

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary's size as the manifest gives it."""
        value = self.manifest.get("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest without what two encodings of one corpus may differ in."""
        kept = {key: value for key, value in self.manifest.items() if key not in _VOLATILE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def starts(self) -> list[int]:
        """The first id's place of each shard, and the end of the stream."""
        return list(self._starts)

    def read(self, start: int, n: int) -> NDArray[np.uint32]:
        """The ids `start` … `start + n` (exclusive) of the stream, as a new uint32 array.

        Raises:
            IndexError: they are not all in the stream.
        """
        self._check_range(start, start, n)
        out = np.empty(n, ID_DTYPE)
        self.read_into(start, out)
        return out.astype(np.uint32, copy=False)

    def read_into(self, start: int, out: NDArray[np.uint32]) -> None:
        """Fill `out` [n], C-contiguous, with the ids from `start` on.

        Raises:
            IndexError: they are not all in the stream.
            TruncatedError: a shard is shorter than it was; names it.
            OSError: a shard cannot be read; FileNotFoundError where it is gone.
        """
        self._check_range(start, start, len(out))
        self._stream.read(start, out.data)

    def gather(self, starts: Sequence[int], out: NDArray[np.uint32]) -> None:
        """Fill the rows of `out` [len(starts), n], C-contiguous, with ids from each start on: `read_into`."""
        if starts:
            self._check_range(min(starts), max(starts), out.size // len(starts))
        self._stream.gather(starts, out.reshape(-1).data)

    def _check_range(self, first: int, last: int, n: int) -> None:
        if first < 0 or n < 0 or last + n > self.total_tokens:
            raise IndexError(f"{self.path}: ids {first} to {last + n} of a stream of {self.total_tokens}")

    def scan(self, on_progress: Callable[[int, int], None] | None = None) -> Scan:
        """Every id, read once: the scan that the manifest keeps where all sizes and times still agree.

        Else a new one, kept in the manifest where that can be written.

        Raises:
            OSError, AprError: a shard cannot be read, or has another size than it was listed with.
        """
        kept = self._kept_scan()
        if kept is not None:
            return kept
        made = scan_shards(self.shards, on_progress=on_progress)
        self.manifest = {**self.manifest, "scan": made.to_dict()}
        # A directory that others own is read all the same, and on a full disk; it is scanned anew next time.
        with suppress(OSError):
            write_manifest(self.path, self.manifest)
        return made

    def changed_shards(self) -> list[str]:
        """The shards whose hash is not the one that their encoder wrote into the manifest."""
        recorded = {row["name"]: row.get("sha256") for row in shard_rows(self.manifest)}
        return [s.name for s in self.scan().shards if recorded.get(s.name) not in (None, s.sha256)]

    def _kept_scan(self) -> Scan | None:
        kept = kept_scan(self.manifest)
        if kept is None:
            return None
        status = [(shard.name, shard.path.stat()) for shard in self.shards]
        now = [(name, at.st_size, at.st_mtime_ns) for name, at in status]
        same = now == [(s.name, s.size, s.mtime_ns) for s in kept.shards]
        return kept if same and kept.corpus_sha256 is not None else None

    def __getstate__(self) -> dict[str, Any]:
        """All but the open files: whether it was read from before decides nothing."""
        return self.__dict__ | {"_opened": None}

    @property
    def _stream(self) -> TokenStream:
        # A fork copies it as it stands, perhaps locked by a thread that the child does not have.
        opened, process = self._opened, os.getpid()
        if opened is None or opened[0] != process:
            files = [(f"{self.path}/{name}", tokens) for name, _, tokens in self.shards]
            opened = self._opened = (process, TokenStream(files))
        return opened[1]

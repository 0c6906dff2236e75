"""A shard directory as one stream of token ids."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr._core import TokenStream
from apr.data.listing import ID_DTYPE, list_shards
from apr.data.manifest import MANIFEST, check_manifest, read_manifest, write_manifest
from apr.data.recorded import check_hashes, file_sha256, recorded_hashes
from apr.data.scan import Scan, scan_shards
from apr.errors import RefusedError
from apr.recognize import token_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Keys of a manifest in which two encodings of the same corpus may differ.
_VOLATILE = {"scan", "scan_sha256", "elapsed_seconds", "num_workers", "repaired_at"}


class ShardDir:
    """A shard directory with its manifest: one stream of `total_tokens` ids.

    Args:
        path: the directory.
        unfinished: whether to accept an encoding that did not finish; the stream then ends with the last
            shard that its manifest counts.

    Raises:
        FileNotFoundError: no such directory, or no manifest.
        RefusedError: the shards or the manifest are not valid; the message names the command that repairs
            them.
    """

    def __init__(self, path: str | os.PathLike[str], *, unfinished: bool = False) -> None:
        self.path = Path(path)
        self.shards = tuple(list_shards(self.path))
        try:
            self.manifest = read_manifest(self.path)
        except FileNotFoundError:
            if what := token_files(self.path):
                raise RefusedError(f"{self.path}: {what}", path=self.path) from None
            raise
        is_unfinished = self.manifest.get("complete") is False
        counted = self.manifest.get("shard_count")
        if unfinished and is_unfinished and isinstance(counted, int):
            # An encoder that was killed may leave one shard that its manifest does not count yet.
            self.shards = self.shards[: max(counted, 0)]
        # First, because an encoder that was killed may leave shards that its manifest does not count yet.
        if is_unfinished and not unfinished:
            raise RefusedError(
                f"{self.path}: the encoding was interrupted; use apr tokenize encode --resume, "
                f"or keep these shards with apr repair-manifest {self.path}",
                path=self.path,
            )
        differences = check_manifest(self.manifest, self.shards)
        if differences:
            raise RefusedError(
                f"{self.path / MANIFEST}: {'; '.join(differences)}; restore the shards, "
                f"or accept them as they are with apr repair-manifest {self.path} --force",
                path=self.path / MANIFEST,
            )
        if "part" in self.manifest and not unfinished:
            raise RefusedError(
                f"{self.path}: part {self.manifest['part']} of an encoding; join all parts with "
                "apr tokenize merge",
                path=self.path,
            )
        self._starts = [0, *accumulate(shard.tokens for shard in self.shards)]
        self._opened: tuple[int, TokenStream] | None = None
        self._is_kept = True
        # Numbers of the shards whose hash is recorded and not compared yet; None before the first read.
        self._unchecked: set[int] | None = None

    @property
    def total_tokens(self) -> int:
        """Number of ids in the stream."""
        return self._starts[-1]

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary's size as the manifest records it; None if it does not."""
        value = self.manifest.get("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest without the keys in which two encodings of the same corpus may differ."""
        stable = {key: value for key, value in self.manifest.items() if key not in _VOLATILE}
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()

    def starts(self) -> list[int]:
        """Return the position of each shard's first id in the stream, and the stream's length."""
        return list(self._starts)

    def read(self, start: int, n: int) -> NDArray[np.uint32]:
        """Return the ids at `start` … `start + n` (exclusive) of the stream as a new array: uint32 [n].

        Raises:
            IndexError: the range is not within the stream.
            TruncatedError: a shard became shorter; names it.
            RefusedError: a shard does not have the hash that the manifest records.
            OSError: a shard cannot be read; FileNotFoundError if it is gone.
        """
        self._check_range(start, start, n)
        out = np.empty(n, ID_DTYPE)
        self.read_into(start, out)
        return out.astype(np.uint32, copy=False)

    def read_into(self, start: int, out: NDArray[np.uint32]) -> None:
        """Fill `out`, uint32 [n], C-contiguous, with the ids from `start` on.

        Raises:
            IndexError: the range is not within the stream.
            TruncatedError: a shard became shorter; names it.
            RefusedError: a shard does not have the hash that the manifest records.
            OSError: a shard cannot be read; FileNotFoundError if it is gone.
        """
        self._check_range(start, start, len(out))
        self._check_unread([start], len(out))
        self._stream.read(start, out.data)

    def gather(self, starts: Sequence[int], out: NDArray[np.uint32]) -> None:
        """Fill row i of `out`, uint32 [len(starts), n], C-contiguous, with the n ids from `starts[i]` on.

        Raises:
            IndexError: a range is not within the stream.
            TruncatedError: a shard became shorter; names it.
            RefusedError: a shard does not have the hash that the manifest records.
            OSError: a shard cannot be read; FileNotFoundError if it is gone.
        """
        if starts:
            n = out.size // len(starts)
            self._check_range(min(starts), max(starts), n)
            self._check_unread(starts, n)
        self._stream.gather(starts, out.reshape(-1).data)

    def _check_range(self, first: int, last: int, n: int) -> None:
        if first < 0 or n < 0 or last + n > self.total_tokens:
            raise IndexError(
                f"{self.path}: ids {first} to {last + n} are out of range; there are {self.total_tokens}"
            )

    def scan(self, on_progress: Callable[[int, int], None] | None = None, *, keep: bool = True) -> Scan:
        """Return a summary of all ids, with hashes, which are compared with those that the manifest records.

        The scan that the manifest keeps is returned if the size and times of every shard still match it.
        Otherwise all shards are read, and the manifest keeps the new scan if it can be written.

        Args:
            on_progress: called with (tokens read, total tokens) from time to time.
            keep: whether to write a new scan to the manifest now; `keep_scan` does it later.

        Raises:
            OSError, AprError: a shard cannot be read, or its size changed since it was listed.
            RefusedError: a shard does not have the hash that the manifest records. Nothing is written.
        """
        scan: Scan | None = self._valid_kept_scan()
        is_kept = scan is not None
        if scan is None:
            scan = scan_shards(self.shards, on_progress=on_progress)
        check_hashes(self.path, self.manifest, {shard.name: shard.sha256 for shard in scan.shards})
        self._unchecked = set()
        if not is_kept:
            self.manifest = {**self.manifest, **scan.manifest_keys()}
            self._is_kept = False
            if keep:
                self.keep_scan()
        return scan

    def keep_scan(self) -> None:
        """Write a scan that was made and not kept to the manifest, if it can be written."""
        if self._is_kept:
            return
        self._is_kept = True
        # Keeping the scan only saves time: a read-only directory or a full disk does not stop a run. Runs
        # that start together all write it, one after another.
        with suppress(OSError):
            write_manifest(self.path, self.manifest)

    def _check_unread(self, starts: Sequence[int], n: int) -> None:
        """Compare the shards with n ids from each start on with their recorded hashes, each shard once.

        Raises:
            RefusedError: a shard does not have the hash that the manifest records.
        """
        if self._unchecked is None:
            recorded = recorded_hashes(self.manifest)
            kept = self._valid_kept_scan()
            if kept is not None:
                # Nobody wrote to the shards since they were hashed.
                check_hashes(self.path, self.manifest, {shard.name: shard.sha256 for shard in kept.shards})
                recorded = {}
            self._unchecked = {i for i, shard in enumerate(self.shards) if shard.name in recorded}
        if not self._unchecked:
            return
        for start in starts:
            first = bisect_right(self._starts, start) - 1
            for number in range(first, bisect_left(self._starts, start + n, lo=first)):
                if number in self._unchecked:
                    shard = self.shards[number]
                    check_hashes(self.path, self.manifest, {shard.name: file_sha256(shard.path)})
                    self._unchecked.discard(number)

    def _valid_kept_scan(self) -> Scan | None:
        kept = Scan.from_manifest(self.manifest)
        # A scan with --no-hash does not do, because the fingerprint of a loader is made of hashes.
        if kept is None or kept.corpus_sha256 is None:
            return None
        scanned = [(shard.name, shard.size, shard.mtime_ns, shard.ctime_ns) for shard in kept.shards]
        status = [(shard.name, shard.path.stat()) for shard in self.shards]
        # The modification time alone does not do: copying tools and programs that restore it set it back.
        now = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in status]
        return kept if now == scanned else None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files: they are opened again on first use in the copy."""
        return self.__dict__ | {"_opened": None, "_unchecked": None}

    @property
    def _stream(self) -> TokenStream:
        # After a fork the child opens its own stream: another thread of the parent may have held the lock of
        # the inherited one at that moment, and nobody would release it in the child.
        opened, process = self._opened, os.getpid()
        if opened is None or opened[0] != process:
            # Strings: a directory may hold a million shards, and a Path for each takes long to make.
            files = [(f"{self.path}/{name}", tokens) for name, _, tokens in self.shards]
            opened = self._opened = (process, TokenStream(files))
        return opened[1]

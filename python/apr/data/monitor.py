"""Are the shards that a run reads still those that it began with? Asked now and then, for little time."""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from apr.data.listing import ID_SIZE
from apr.errors import RefusedError, TruncatedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr.data.scan import Scan
    from apr.data.shards import ShardDir
    from apr.data.windows import Windows

# A file that is open can still be read when its name is gone, and gives other ids when it was written over.
# Seconds between two looks: a look at the shards of one batch takes some 30 µs, so that a loader without a
# consumer loses less than a thousandth; where a step takes longer than this, every batch is looked at.
POLL_SECONDS = 0.05


class ShardMonitor:
    """Sizes and times of shards, compared with those of their scan.

    Args:
        shards: the directory.
        scan: its scan, which holds now.
    """

    def __init__(self, shards: ShardDir, scan: Scan) -> None:
        self._shards = shards
        self._starts = shards.starts()
        self._hashes = tuple(shard.sha256 for shard in scan.shards)
        self._times = np.array([shard.mtime_ns for shard in scan.shards], np.int64)
        self._next = 0.0

    def poll(self, windows: Windows, chosen: NDArray[np.int64]) -> None:
        """Look at the shards of windows that were just read, unless it was done a moment ago.

        One with another time is hashed: it may have been copied or touched.

        Raises:
            FileNotFoundError: one is gone.
            TruncatedError: one is shorter than it was.
            RefusedError: one holds something else.
        """
        now = time.monotonic()
        if now < self._next:
            return
        touched: set[int] = set()
        for start in windows.starts(chosen.tolist()):
            first = bisect_right(self._starts, start) - 1
            touched.update(range(first, bisect_right(self._starts, start + windows.seq_length, lo=first)))
        for shard in touched:
            self._compare(shard)
        self._next = now + POLL_SECONDS

    def _compare(self, number: int) -> None:
        name, directory, tokens = self._shards.shards[number]
        path = directory / name
        status = os.stat(path)  # noqa: PTH116 (half the time of Path's)
        size = tokens * ID_SIZE
        if status.st_size < size:
            raise TruncatedError(f"{path}: the file ends at byte {status.st_size}, it had {size}", path=path)
        if status.st_size == size and status.st_mtime_ns == self._times[number]:
            return
        if status.st_size == size:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == self._hashes[number]:
                    self._times[number] = status.st_mtime_ns
                    return
        raise RefusedError(
            f"{path}: changed while a run reads it: what it held is not there any more: bring it back and "
            "resume, or start anew"
        )

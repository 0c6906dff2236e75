"""A check, now and then during a run, that the shards are still those that it started with."""

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

# Seconds between two polls. Comparing the shards of one batch takes about 30 µs, so a loader that never waits
# for its consumer loses less than a thousandth. If a step takes longer than this, every batch is checked.
POLL_SECONDS = 0.05


class ShardMonitor:
    """Compares sizes and modification times of shards with those of their scan.

    Reading alone does not notice everything: an open file can still be read after its name is gone, and
    returns other ids after it was overwritten.

    Args:
        shards: the directory.
        scan: its scan, which is valid now.
        poll_seconds: seconds between two polls.
    """

    def __init__(self, shards: ShardDir, scan: Scan, poll_seconds: float = POLL_SECONDS) -> None:
        self._shards = shards
        self._poll_seconds = poll_seconds
        self._starts = shards.starts()
        self._hashes = tuple(shard.sha256 for shard in scan.shards)
        self._times = np.array([shard.mtime_ns for shard in scan.shards], np.int64)
        self._next_poll = 0.0

    def poll(self, windows: Windows, indices: NDArray[np.int64]) -> None:
        """Check the shards of windows that were just read, unless the last poll was a moment ago.

        A shard with another modification time is hashed: it may only have been copied or touched.

        Args:
            windows: the windows of the directory.
            indices: int64 [batch_size], the windows that were read.

        Raises:
            FileNotFoundError: a shard is gone.
            TruncatedError: a shard is shorter than it was.
            RefusedError: the contents of a shard changed.
        """
        now = time.monotonic()
        if now < self._next_poll:
            return
        touched: set[int] = set()
        for start in windows.starts(indices.tolist()):
            first = bisect_right(self._starts, start) - 1
            # A window may begin in one shard and end in another.
            touched.update(range(first, bisect_right(self._starts, start + windows.seq_length, lo=first)))
        for number in touched:
            self._check(number)
        self._next_poll = now + self._poll_seconds

    def _check(self, number: int) -> None:
        name, directory, tokens = self._shards.shards[number]
        path = directory / name
        status = os.stat(path)  # noqa: PTH116 (takes half the time of Path.stat)
        size = tokens * ID_SIZE
        if status.st_size < size:
            raise TruncatedError(
                f"{path}: the file ends at byte {status.st_size}, but had {size} bytes", path=path
            )
        if status.st_size == size:
            if status.st_mtime_ns == self._times[number]:
                return
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == self._hashes[number]:
                    # Only copied or touched. The new time is remembered, so that the shard is hashed once and
                    # not at each poll.
                    self._times[number] = status.st_mtime_ns
                    return
        raise RefusedError(
            f"{path}: changed while a run was reading it; restore the shard and resume, or start over",
            path=path,
        )

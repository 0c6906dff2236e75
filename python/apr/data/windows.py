"""Windows of a token stream, and the order in which training visits them.

Window i of a stream of N ids holds ids i·T … i·T + T: T inputs and their T next ids. There are
W = ⌊(N - 1) / T⌋ of them. The order is a keyed bijection of 0 … W - 1 (a Feistel network over the
smallest even number of bits, cycle-walked), computed where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apr._core import window_order
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from apr.data.shards import ShardDir


class Windows:
    """The windows of ids `start` … `stop` (exclusive) of a shard directory.

    Raises:
        RefusedError: a `seq_length` below 1.
        IndexError: a range that is not in the stream.
    """

    def __init__(self, shards: ShardDir, seq_length: int, start: int = 0, stop: int | None = None) -> None:
        if seq_length < 1:
            raise RefusedError(f"{shards.path}: windows of {seq_length} ids: at least 1 is needed")
        if start < 0 or (stop is not None and stop > shards.total_tokens):
            raise IndexError(f"{shards.path}: ids {start} to {stop} of a stream of {shards.total_tokens}")
        self.shards = shards
        self.seq_length = seq_length
        self.start = start
        self.stop = shards.total_tokens if stop is None else stop

    def __len__(self) -> int:
        return max(0, (self.stop - self.start - 1) // self.seq_length)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Windows by index: int64 [len(indices), seq_length + 1].

        Raises:
            IndexError: there is no such window.
        """
        ids = np.empty((len(indices), self.seq_length + 1), "<u4")
        self.gather(indices, ids)
        return ids.astype(np.int64)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
        """Windows by index into `out` [len(indices), seq_length + 1], C-contiguous.

        Raises:
            IndexError: there is no such window.
        """
        chosen = indices.tolist()  # of a batch's few numbers, lists take a third of the time
        if chosen and not 0 <= min(chosen) <= max(chosen) < len(self):
            raise IndexError(f"windows {min(chosen)} to {max(chosen)} of {len(self)}")
        self.shards.gather(self.starts(chosen), out)

    def starts(self, indices: Iterable[int]) -> list[int]:
        """The place in the stream of each window's first id."""
        return [self.start + index * self.seq_length for index in indices]

    def in_order(self, count: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """The first `count` windows in stream order, `batch_size` at a time."""
        for first in range(0, count, batch_size):
            yield self.batch(np.arange(first, min(first + batch_size, count)))


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """Which window each position of a training run visits; positions go on through the data's epochs."""

    count: int
    """Windows in one epoch of the data."""
    seed: int
    shuffle: bool

    def windows(self, start: int, n: int) -> NDArray[np.int64]:
        """Window indices at positions `start` … `start + n` (exclusive)."""
        return np.array(window_order(start, n, self.count, self.seed, self.shuffle), np.int64)

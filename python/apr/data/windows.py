"""Windows of a token stream, and the order in which training visits them.

Window i of a stream of N ids contains the ids i·T … i·T + T: T inputs and, shifted by one, their T targets.
There are W = ⌊(N - 1) / T⌋ of them. The order is a keyed bijection of 0 … W - 1, a Feistel network over the
smallest even number of bits with cycle walking: any position is computed on demand, without a permutation in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apr._core import window_order
from apr.data.listing import ID_DTYPE
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from apr.data.shards import ShardDir


class Windows:
    """The windows of the ids `start` … `stop` (exclusive) of a shard directory.

    Args:
        shards: the directory.
        seq_length: T, the inputs of one window; a window has T + 1 ids.
        start: the first id.
        stop: the id after the last one; None is the end of the stream.

    Raises:
        RefusedError: `seq_length` is below 1.
        IndexError: the range is not within the stream.
    """

    def __init__(self, shards: ShardDir, seq_length: int, start: int = 0, stop: int | None = None) -> None:
        if seq_length < 1:
            raise RefusedError(
                f"{shards.path}: the window length must be at least 1, not {seq_length}", path=shards.path
            )
        if start < 0 or (stop is not None and stop > shards.total_tokens):
            raise IndexError(
                f"{shards.path}: ids {start} to {stop} are out of range; there are {shards.total_tokens}"
            )
        self.shards = shards
        self.seq_length = seq_length
        self.start = start
        self.stop = shards.total_tokens if stop is None else stop

    def __len__(self) -> int:
        # One id less, because the last input of the last window needs a target.
        return max(0, (self.stop - self.start - 1) // self.seq_length)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return windows by index: int64 [len(indices), seq_length + 1].

        Raises:
            IndexError: an index is not below the number of windows.
            OSError, TruncatedError: a shard cannot be read.
        """
        ids = np.empty((len(indices), self.seq_length + 1), ID_DTYPE)
        self.gather(indices, ids)
        return ids.astype(np.int64)

    def gather(self, indices: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
        """Read windows by index into `out`: uint32 [len(indices), seq_length + 1], C-contiguous.

        Raises:
            IndexError: an index is not below the number of windows.
            OSError, TruncatedError: a shard cannot be read.
        """
        numbers = indices.tolist()  # min and max of a few numbers take a third of the time on a list
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(
                f"windows {min(numbers)} to {max(numbers)} are out of range; there are {len(self)}"
            )
        self.shards.gather(self.starts(numbers), out)

    def starts(self, indices: Iterable[int]) -> list[int]:
        """Return the position in the stream of each window's first id."""
        return [self.start + index * self.seq_length for index in indices]


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """Which window a training run visits at each position; positions continue through data epochs."""

    count: int
    """Windows in one epoch of the data."""
    seed: int
    shuffle: bool
    """Whether the order is random; otherwise it is that of the stream."""

    def windows(self, start: int, n: int) -> NDArray[np.int64]:
        """Return the window indices at positions `start` … `start + n` (exclusive): int64 [n]."""
        return np.array(window_order(start, n, self.count, self.seed, self.shuffle), np.int64)

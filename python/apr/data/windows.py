"""Windows of a token stream, and the order in which training visits them.

Window i of a stream of N ids holds ids i·T … i·T + T: T inputs and their T next ids. There are
W = ⌊(N - 1) / T⌋ of them. The order is a keyed bijection of 0 … W - 1 (a Feistel network over the
smallest even number of bits, cycle-walked), computed where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from apr.data.shards import ShardDir

_MASK64 = (1 << 64) - 1
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_SEED_FACTOR = 0xD1342543DE82EF95
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Windows:
    """The windows of ids `start` … `stop` (exclusive) of a shard directory."""

    def __init__(self, shards: ShardDir, seq_length: int, start: int = 0, stop: int | None = None) -> None:
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
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"windows {indices.min()} to {indices.max()} of {len(self)}")
        ids = np.empty((len(indices), self.seq_length + 1), np.uint32)
        for row, index in zip(ids, indices, strict=True):
            self.shards.read_into(self.start + int(index) * self.seq_length, row)
        return ids.astype(np.int64)

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
        positions = np.arange(start, start + n, dtype=np.int64)
        epochs, within = np.divmod(positions, self.count)
        if not self.shuffle:
            return within
        order = np.empty(n, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            order[chosen] = permute(within[chosen], self.count, self.seed, int(epoch))
        return order


def permute(positions: NDArray[np.int64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a keyed bijection of 0 … count - 1 takes each position; every one is reached alone.

    Args:
        positions: int64 [n], each below `count`.
        count: number of windows W.
        seed: of the run.
        epoch: of the data, from 0.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = _keys(seed, epoch)
    out = positions.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> shift, out[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mix_all(right + key) & mask)
        out[todo] = left << shift | right
        todo = todo[out[todo] >= np.uint64(count)]
    return out.astype(np.int64)


def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    state, keys = (seed * _SEED_FACTOR + epoch) & _MASK64, []
    for _ in range(_ROUNDS):
        state = (state + _GOLDEN) & _MASK64
        keys.append(state)
    return _mix_all(np.array(keys, np.uint64))


def _mix_all(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser; NumPy's arrays wrap modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX[1])
    return z ^ (z >> np.uint64(31))

"""Batches of training windows, read ahead on a thread, and the few numbers that resume them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Self, get_type_hints

import torch

from apr.data.monitor import POLL_SECONDS, ShardMonitor
from apr.data.read_ahead import BatchSource, ReadAhead
from apr.data.windows import TrainingOrder
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from apr.data.scan import Scan
    from apr.data.windows import Windows

# Two batches wait for the consumer: while one is copied to the device, the next is read.
_PREFETCH = 2
# Seeds are below this. Positions are below half of it, which leaves room for additions without overflow.
_MAX_SEED = 1 << 64


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the order of windows depends on besides the seed. A copy of a directory has the same one."""

    shard_count: int
    total_tokens: int
    corpus_sha256: str
    """SHA-256 over the hashes of all shards."""
    seq_length: int
    start: int
    """The first id of the windows."""
    stop: int
    """The id after the last one."""
    shuffle: bool


@dataclass(frozen=True, slots=True)
class LoaderState:
    """The position of a loader: all that it takes to resume, however far it is."""

    fingerprint: Fingerprint
    epoch: int
    """Completed epochs of the data."""
    position: int
    """Windows of this epoch that were returned, on all ranks together."""
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> LoaderState:
        """Return the state that `to_dict` was called on.

        Raises:
            RefusedError: a field is missing or has another type; names it.
        """
        if not isinstance(kept, Mapping):
            raise RefusedError(f"loader state: {kept!r} is not an object")
        fingerprint = kept.get("fingerprint")
        if not isinstance(fingerprint, Mapping):
            raise RefusedError(f"loader state: fingerprint is {fingerprint!r}, not an object")
        types = get_type_hints(Fingerprint)
        return cls(
            Fingerprint(**{name: _typed(fingerprint, name, kind) for name, kind in types.items()}),
            epoch=_typed(kept, "epoch", int),
            position=_typed(kept, "position", int),
            seed=_typed(kept, "seed", int),
        )


def _typed(kept: Mapping[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401 (a value of `kind`)
    value = kept.get(name)
    negative = isinstance(value, int) and value < 0
    # type() is compared because True is an instance of int.
    if type(value) is not kind or negative:
        expected = "an integer of at least 0" if kind is int else f"of type {kind.__name__}"
        raise RefusedError(f"loader state: {name} is {value!r}, not {expected}")
    return value


class Loader:
    """Endless batches of training windows, in the order that the seed determines.

    The order continues through the epochs of the data. Batches and ranks only divide it: all ranks together
    get the same windows as one rank with batches as large as all of theirs. The next batches are read on a
    thread. For a GPU they pass through pinned buffers and a stream of their own, and become int64 there.

        with Loader(windows, 16, seed=1, device="cuda") as loader:
            for ids in loader:               # int64 [16, seq_length + 1] on the device
                ...
                kept = loader.state.to_dict()

    Args:
        windows: the windows to load.
        batch_size: windows per batch of this rank.
        seed: determines the order; below 2^64.
        shuffle: whether the order is random; otherwise it is that of the stream.
        rank: this process's part of each batch.
        world_size: the number of ranks.
        turn: batches that a rank takes before it is the next rank's turn: those of one step.
        device: where the batches are placed.
        state: where to resume; its seed is used instead of `seed`.
        prefetch: batches that are read ahead.
        poll_seconds: seconds between two checks that the shards have not changed.

    Raises:
        RefusedError: no windows; a `state` of other data, with what differs; a seed or position out of range.
        OSError, AprError: the shards cannot be read. They are read once for the fingerprint if the manifest
            keeps no valid scan.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        turn: int = 1,
        device: torch.device | str = "cpu",
        state: LoaderState | None = None,
        prefetch: int = _PREFETCH,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        if len(windows) == 0:
            raise RefusedError(
                f"{windows.shards.path}: fewer ids than one window of {windows.seq_length} + 1 needs",
                path=windows.shards.path,
            )
        if not 0 <= rank < world_size or batch_size < 1 or turn < 1:
            raise ValueError(
                f"invalid rank {rank}, world_size {world_size}, turn {turn} or batch_size {batch_size}"
            )
        # With hashes: a state of other data with the same sizes would otherwise resume without a word.
        scan = windows.shards.scan()
        self.fingerprint = _fingerprint(windows, scan, shuffle=shuffle)
        if state is not None:
            _check_fingerprint(state.fingerprint, self.fingerprint, windows)
            seed = state.seed
        if not 0 <= seed < _MAX_SEED:
            raise RefusedError(f"loader: seed {seed} is not between 0 and 2^64 - 1")
        self._order = TrainingOrder(len(windows), seed, shuffle)
        # The ranks take turns in one order, so that the order of tokens does not depend on how many there
        # are. `_first` counts the windows before this round of turns, `_taken` the batches of this turn.
        self._first = 0 if state is None else _position(state, len(windows))
        self._taken, self._turn = 0, turn
        self._round = batch_size * turn * world_size
        self._offset = batch_size * turn * rank
        self._source = BatchSource(
            windows, self._order, batch_size, ShardMonitor(windows.shards, scan, poll_seconds)
        )
        self._device = torch.device(device)
        self._prefetch = prefetch
        self._reader: ReadAhead | None = None

    @property
    def state(self) -> LoaderState:
        """The state after the batch that was returned last; within a turn, that before the turn."""
        # Counted in windows of all ranks: a resumed run may have another batch size or number of ranks.
        epoch, position = divmod(self._first, self._order.count)
        return LoaderState(self.fingerprint, epoch, position, self._order.seed)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """Return the next batch: int64 [batch_size, seq_length + 1] on the device.

        Raises:
            TruncatedError: a shard became shorter; names it.
            RefusedError: the contents of a shard changed; names it.
            OSError: a shard cannot be read; FileNotFoundError if it is gone.
        """
        if self._reader is not None and self._reader.process != os.getpid():
            # A fork inherits the reader, but not the thread that fills it.
            self._reader.abandon()
            self._reader = None
        if self._reader is None:
            self._reader = ReadAhead(self._source, self._positions(), self._device, self._prefetch)
        try:
            batch = self._reader.take()
        except BaseException:
            # Also after Ctrl-C, the next call starts a new thread at the batch that was not returned.
            self.close()
            raise
        self._taken += 1
        if self._taken == self._turn:
            self._taken, self._first = 0, self._first + self._round
        return batch

    def _positions(self) -> Iterator[int]:
        """Return the position of each batch of this rank, from the next one on."""
        # Iterators of numbers, without a reference to this object: a loader that is dropped is collected.
        turns = count(self._first + self._offset, self._round)
        starts = range(0, self._turn * self._source.batch_size, self._source.batch_size)
        positions = (first + start for first in turns for start in starts)
        return islice(positions, self._taken, None)

    def close(self) -> None:
        """End the thread. The next batch starts another one."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the thread; a copy continues at the same position."""
        return self.__dict__ | {"_reader": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fingerprint(windows: Windows, *, shuffle: bool) -> Fingerprint:
    """Return the fingerprint of windows, from the scan that the manifest keeps or from a new one.

    Raises:
        OSError, AprError: the shards cannot be read.
    """
    return _fingerprint(windows, windows.shards.scan(), shuffle=shuffle)


def _fingerprint(windows: Windows, scan: Scan, *, shuffle: bool) -> Fingerprint:
    assert scan.corpus_sha256 is not None  # ShardDir.scan hashes every shard
    return Fingerprint(
        shard_count=len(windows.shards.shards),
        total_tokens=windows.shards.total_tokens,
        corpus_sha256=scan.corpus_sha256,
        seq_length=windows.seq_length,
        start=windows.start,
        stop=windows.stop,
        shuffle=shuffle,
    )


def _check_fingerprint(before: Fingerprint, now: Fingerprint, windows: Windows) -> None:
    old, new = asdict(before), asdict(now)
    differences = [f"{name} was {old[name]}, is {new[name]}" for name in old if old[name] != new[name]]
    if not differences:
        return
    raise RefusedError(
        f"{windows.shards.path}: does not match the loader state: {'; '.join(differences)}; "
        "restore the data or start over",
        path=windows.shards.path,
    )


def _position(state: LoaderState, count: int) -> int:
    """Return the windows that were returned in all epochs together."""
    position = state.epoch * count + state.position
    if not 0 <= state.position < count or not 0 <= position < _MAX_SEED // 2:
        raise RefusedError(
            f"loader state: epoch {state.epoch}, position {state.position} is out of range "
            f"for {count} windows"
        )
    return position

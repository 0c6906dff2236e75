"""Batches of training windows, read ahead on a thread, and the few numbers that resume them."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, get_type_hints

import numpy as np
import torch

from apr.data.listing import ID_DTYPE
from apr.data.monitor import POLL_SECONDS, ShardMonitor
from apr.data.windows import TrainingOrder
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from apr.data.scan import Scan
    from apr.data.windows import Windows

# Two batches wait for the consumer: while one is copied to the device, the next is read.
_PREFETCH = 2
# A thread stuck in a disk that does not answer is abandoned after this many seconds. It is a daemon, and
# ends with the process.
_JOIN_SECONDS = 1.0
# Ids are uint32. From 2^31 on they are negative in a tensor of int32; this mask makes them positive again.
_UINT32_MASK = 0xFFFF_FFFF
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
        device: torch.device | str = "cpu",
        state: LoaderState | None = None,
        prefetch: int = _PREFETCH,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        if len(windows) == 0:
            raise RefusedError(
                f"{windows.shards.path}: fewer ids than one window of {windows.seq_length} + 1"
            )
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(f"rank {rank} of {world_size} with batches of {batch_size} is not possible")
        scan = windows.shards.scan()
        self.fingerprint = _fingerprint(windows, scan, shuffle=shuffle)
        if state is not None:
            _check_fingerprint(state.fingerprint, self.fingerprint, windows)
            seed = state.seed
        if not 0 <= seed < _MAX_SEED:
            raise RefusedError(f"loader: seed {seed} is not between 0 and 2^64 - 1")
        self._order = TrainingOrder(len(windows), seed, shuffle)
        self._next = 0 if state is None else _position(state, len(windows))
        self._stride = batch_size * world_size
        self._offset = batch_size * rank
        self._source = _Source(
            windows, self._order, batch_size, ShardMonitor(windows.shards, scan, poll_seconds)
        )
        self._device = torch.device(device)
        self._prefetch = prefetch
        self._reader: _Reader | None = None

    @property
    def state(self) -> LoaderState:
        """The state after the batch that was returned last."""
        epoch, position = divmod(self._next, self._order.count)
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
            first = self._next + self._offset
            self._reader = _Reader(self._source, first, self._stride, self._device, self._prefetch)
        try:
            batch = self._reader.take()
        except BaseException:
            # Also after Ctrl-C, the next call starts a new thread at the batch that was not returned.
            self.close()
            raise
        self._next += self._stride
        return batch

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
    changed = windows.shards.changed_shards()
    names = ""
    if changed:
        more = " …" if len(changed) > 3 else ""
        names = f" (changed: {', '.join(changed[:3])}{more})"
    raise RefusedError(
        f"{windows.shards.path}: not the data of the loader state{names}: {'; '.join(differences)}; "
        "restore the data or start over"
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


@dataclass(frozen=True, slots=True)
class _Source:
    """Reads the windows of a batch into a buffer."""

    windows: Windows
    order: TrainingOrder
    batch_size: int
    monitor: ShardMonitor

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch_size, self.windows.seq_length + 1

    def fill(self, position: int, out: NDArray[np.uint32]) -> None:
        """Read the windows at `position` … `position + batch_size` into `out`, uint32 of `shape`."""
        indices = self.order.windows(position, self.batch_size)
        self.windows.gather(indices, out)
        # Polled after reading: if the shard has not changed until now, the ids are the right ones.
        self.monitor.poll(self.windows, indices)


class _Reader:
    """A thread that reads ahead; its errors are raised where the batch is taken."""

    def __init__(
        self, source: _Source, position: int, stride: int, device: torch.device, prefetch: int
    ) -> None:
        self._ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException] = queue.SimpleQueue()
        # One item per batch that may be read ahead; a queue is faster here than a semaphore.
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        stop = threading.Event()
        for _ in range(prefetch):
            self._permits.put(None)
        self.process = os.getpid()
        # The thread holds no reference to this object: a reader that is dropped is collected, which ends the
        # thread.
        thread = threading.Thread(
            target=_read_ahead,
            args=(source, position, stride, device, self._ready, self._permits, stop),
            name="apr-loader",
            daemon=True,  # so that Ctrl-C does not wait for a disk that does not answer
        )
        self._finalizer = weakref.finalize(self, _end_thread, thread, self._permits, stop)
        thread.start()

    def take(self) -> Tensor:
        """Return the next batch."""
        item = self._ready.get()  # signals reach the main thread while it waits here
        if isinstance(item, BaseException):
            raise item
        self._permits.put(None)
        return item.claim() if isinstance(item, _OnDevice) else item

    def close(self) -> None:
        """End the thread."""
        self._finalizer()

    def abandon(self) -> None:
        """Forget the thread, which runs in the process that this one was forked from."""
        self._finalizer.detach()


def _end_thread(thread: threading.Thread, permits: queue.SimpleQueue[None], stop: threading.Event) -> None:
    stop.set()
    permits.put(None)  # wakes the thread
    if thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


def _read_ahead(
    source: _Source,
    position: int,
    stride: int,
    device: torch.device,
    ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException],
    permits: queue.SimpleQueue[None],
    stop: threading.Event,
) -> None:
    try:
        batches = _PinnedBatches(source, device) if device.type == "cuda" else _HostBatches(source, device)
        while True:
            permits.get()
            if stop.is_set():
                return
            ready.put(batches.read(position))
            position += stride
    except BaseException as error:  # noqa: BLE001 (raised again by the consumer)
        ready.put(error)


class _HostBatches:
    """Batches for a device that reads host memory."""

    def __init__(self, source: _Source, device: torch.device) -> None:
        self._source, self._device = source, device
        self._ids = np.empty(source.shape, ID_DTYPE)

    def read(self, position: int) -> Tensor:
        self._source.fill(position, self._ids)
        return torch.from_numpy(self._ids.astype(np.int64)).to(self._device)


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A batch that is being copied to a GPU."""

    ids: Tensor
    copied: torch.cuda.Event

    def claim(self) -> Tensor:
        """Return the batch. The computing stream waits for the copy; the caller does not."""
        stream = torch.cuda.current_stream(self.ids.device)
        stream.wait_event(self.copied)
        # Without this, the allocator could reuse the memory once the copying stream is done with it.
        self.ids.record_stream(stream)
        return self.ids


class _PinnedBatches:
    """Batches for a GPU. Ids cross the bus as 32 bits, half the bytes, from two pinned buffers in turn."""

    def __init__(self, source: _Source, device: torch.device) -> None:
        self._source, self._device = source, device
        self._buffers = [torch.empty(source.shape, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def read(self, position: int) -> _OnDevice:
        turn, self._turn = self._turn, 1 - self._turn
        buffer, last_copy = self._buffers[turn], self._copied[turn]
        if last_copy is not None:
            last_copy.synchronize()  # the buffer must not be overwritten while it is copied
        self._source.fill(position, buffer.numpy().view(ID_DTYPE))
        with torch.cuda.stream(self._stream):
            ids = buffer.to(self._device, non_blocking=True).long().bitwise_and_(_UINT32_MASK)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._copied[turn] = copied
        return _OnDevice(ids, copied)

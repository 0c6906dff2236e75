"""Batches of training windows, read ahead on a thread, and the few numbers that say how far they are."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from apr.data.monitor import ShardMonitor
from apr.data.windows import TrainingOrder
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from apr.data.scan import Scan
    from apr.data.windows import Windows

# Batches that wait for the consumer: while one is copied to the device, the next is read.
_AHEAD = 2
# A reader that is stuck in a disk that does not answer is left behind: it dies with the process.
_SECONDS_TO_END = 1.0
_LOW_BITS = 0xFFFF_FFFF
# The order takes seeds below this, and positions below half of it: nobody gets through the other half.
_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the order of windows depends on, besides the seed. A copy of a directory has the same."""

    shard_count: int
    total_tokens: int
    corpus_sha256: str
    """Over the shards' own hashes."""
    seq_length: int
    start: int
    """The first id that windows are cut from."""
    stop: int
    """The id after the last one."""
    shuffle: bool


@dataclass(frozen=True, slots=True)
class LoaderState:
    """How far a loader is: all that is needed to go on, however far that is."""

    fingerprint: Fingerprint
    epoch: int
    """How often the data was gone through."""
    position: int
    """Windows handed out in this epoch, to all ranks together."""
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> LoaderState:
        """What `to_dict` gave.

        Raises:
            RefusedError: it is something else; names the field.
        """
        if not isinstance(kept, Mapping):
            raise RefusedError(f"the state of a loader: {kept!r} is no object of fields")
        inside = _checked(
            LoaderState, {"fingerprint": dict, "epoch": int, "position": int, "seed": int}, kept
        )
        kinds = {field.name: _KINDS[str(field.type)] for field in fields(Fingerprint)}
        fingerprint = Fingerprint(**_checked(Fingerprint, kinds, inside.pop("fingerprint")))
        return cls(fingerprint, **inside)


_KINDS: dict[str, type] = {"int": int, "str": str, "bool": bool}


def _checked(of: type, kinds: Mapping[str, type], kept: Mapping[str, Any]) -> dict[str, Any]:
    for name, kind in kinds.items():
        value = kept.get(name)
        negative = isinstance(value, int) and value < 0
        if type(value) is not kind or negative:
            raise RefusedError(
                f"the state of a loader: {of.__name__}.{name} is {value!r}, no {kind.__name__}"
            )
    return {name: kept[name] for name in kinds}


class Loader:
    """Batches of training windows without end, in the one order that the seed gives.

    The order goes on through the epochs of the data, and batches and ranks only cut it: ranks together get
    the same windows as one rank with batches as large as all of theirs. The next batches are read on a
    thread; on a GPU they pass through pinned buffers and a stream of their own, and become int64 there.

        with Loader(windows, 16, seed=1, device="cuda") as loader:
            for ids in loader:               # int64 [16, seq_length + 1] on the device
                ...
                kept = loader.state.to_dict()

    Args:
        windows: what to take.
        batch_size: windows of one batch, of this rank.
        seed: of the order.
        shuffle: whether the order is random; else it is that of the stream.
        rank: which part of each batch is this process's.
        world_size: how many parts there are.
        device: where batches shall lie.
        state: where to go on; its seed counts then.

    Raises:
        RefusedError: no windows; a `state` of other data: says what differs; a seed or a position that no
            loader has.
        OSError, AprError: the shards cannot be read: without a scan in the manifest they are, once, for the
            fingerprint.
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
    ) -> None:
        if len(windows) == 0:
            raise RefusedError(f"{windows.shards.path}: not one window of {windows.seq_length} + 1 ids")
        if not (0 <= rank < world_size and batch_size > 0):
            raise ValueError(f"rank {rank} of {world_size}, batches of {batch_size}")
        scan = windows.shards.scan()
        self.fingerprint = _fingerprint(windows, scan, shuffle=shuffle)
        if state is not None:
            _check_same(state.fingerprint, self.fingerprint, windows)
        count = len(windows)
        seed = seed if state is None else state.seed
        if not 0 <= seed < _SEEDS:
            raise RefusedError(f"seed {seed} of a loader: it must be at least 0 and below 2^64")
        self._order = TrainingOrder(count, seed, shuffle)
        self._next = 0 if state is None else _place(state, count)
        self._step = batch_size * world_size
        self._offset = batch_size * rank
        self._batch_size = batch_size
        self._windows = windows
        self._monitor = ShardMonitor(windows.shards, scan)
        self._device = torch.device(device)
        self._reader: _Reader | None = None

    @property
    def state(self) -> LoaderState:
        """After the batch that was handed out last."""
        epoch, position = divmod(self._next, self._order.count)
        return LoaderState(self.fingerprint, epoch, position, self._order.seed)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next batch: int64 [batch_size, seq_length + 1] on the device.

        Raises:
            TruncatedError: a shard became shorter; names it.
            RefusedError: a shard no longer holds what it did; names it.
            OSError: a shard cannot be read; FileNotFoundError where it is gone.
        """
        if self._reader is not None and self._reader.process != os.getpid():
            self._reader.forget()
            self._reader = None
        if self._reader is None:
            source = _Source(self._windows, self._order, self._batch_size, self._step, self._monitor)
            self._reader = _Reader(source, self._next + self._offset, self._device)
        try:
            batch = self._reader.take()
        except BaseException:  # Ctrl-C too: whoever goes on after it gets the batch that is next
            self.close()
            raise
        self._next += self._step
        return batch

    def close(self) -> None:
        """End the thread. A loader that is used again starts another."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the thread: the copy goes on where this loader is."""
        return self.__dict__ | {"_reader": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place(state: LoaderState, count: int) -> int:
    """Windows handed out in all."""
    place = state.epoch * count + state.position
    if not (0 <= state.position < count and 0 <= place < _SEEDS // 2):
        raise RefusedError(
            f"the state of a loader: epoch {state.epoch}, position {state.position}: no place in data of "
            f"{count} windows"
        )
    return place


def fingerprint(windows: Windows, *, shuffle: bool) -> Fingerprint:
    """Of windows, from the scan that the manifest keeps, or one that is made for it.

    Raises:
        OSError, AprError: the shards cannot be read.
    """
    return _fingerprint(windows, windows.shards.scan(), shuffle=shuffle)


def _fingerprint(windows: Windows, scan: Scan, *, shuffle: bool) -> Fingerprint:
    shards, sha256 = windows.shards, scan.corpus_sha256
    assert sha256 is not None  # a scan for a run hashes every shard
    return Fingerprint(
        len(shards.shards),
        shards.total_tokens,
        sha256,
        windows.seq_length,
        windows.start,
        windows.stop,
        shuffle,
    )


def _check_same(before: Fingerprint, now: Fingerprint, windows: Windows) -> None:
    kept, found = asdict(before), asdict(now)
    differing = [f"{name} was {kept[name]}, is {found[name]}" for name in kept if kept[name] != found[name]]
    if differing:
        changed = windows.shards.changed_shards()
        named = f" ({', '.join(changed[:3])}{' …' * (len(changed) > 3)})" if changed else ""
        raise RefusedError(
            f"{windows.shards.path}: not the data that the state is of{named}: {'; '.join(differing)}: "
            "bring the data back or start anew"
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """Where batches come from."""

    windows: Windows
    order: TrainingOrder
    batch_size: int
    step: int
    monitor: ShardMonitor

    def fill(self, position: int, out: NDArray[np.uint32]) -> None:
        """The windows at `position` and after it, into [batch_size, seq_length + 1]."""
        chosen = self.order.windows(position, self.batch_size)
        self.windows.gather(chosen, out)
        # After reading: what was read is then what the shard held.
        self.monitor.poll(self.windows, chosen)


class _Reader:
    """A thread that reads ahead; what goes wrong there is raised where the batch is taken."""

    def __init__(self, source: _Source, position: int, device: torch.device) -> None:
        ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException] = queue.SimpleQueue()
        room: queue.SimpleQueue[None] = queue.SimpleQueue()  # faster than a semaphore
        stop = threading.Event()
        for _ in range(_AHEAD):
            room.put(None)
        self._ready, self._room = ready, room
        self.process = os.getpid()
        # The thread knows nothing of this object: one that is dropped is collected, which ends the thread.
        thread = threading.Thread(
            target=_read,
            args=(source, position, device, ready, room, stop),
            name="apr-loader",
            daemon=True,  # Ctrl-C waits for no disk
        )
        self._finish = weakref.finalize(self, _end, thread, room, stop)
        thread.start()

    def take(self) -> Tensor:
        """The next batch."""
        found = self._ready.get()  # signals reach the main thread while it waits here
        if isinstance(found, BaseException):
            raise found
        self._room.put(None)
        return found.claim() if isinstance(found, _OnDevice) else found

    def close(self) -> None:
        """End the thread."""
        self._finish()

    def forget(self) -> None:
        """Leave the thread to the process that has it: this one is a fork of that."""
        self._finish.detach()


def _end(thread: threading.Thread, room: queue.SimpleQueue[None], stop: threading.Event) -> None:
    stop.set()
    room.put(None)
    if thread is not threading.current_thread():
        thread.join(_SECONDS_TO_END)


def _read(
    source: _Source,
    position: int,
    device: torch.device,
    ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException],
    room: queue.SimpleQueue[None],
    stop: threading.Event,
) -> None:
    try:
        stage = _Pinned(source, device) if device.type == "cuda" else _Plain(source, device)
        while True:
            room.get()
            if stop.is_set():
                return
            ready.put(stage.batch(position))
            position += source.step
    except BaseException as error:  # noqa: BLE001 (raised again by the consumer)
        ready.put(error)


class _Plain:
    """Batches for a device that reads the host's memory."""

    def __init__(self, source: _Source, device: torch.device) -> None:
        self._source, self._device = source, device
        self._ids = np.empty((source.batch_size, source.windows.seq_length + 1), "<u4")

    def batch(self, position: int) -> Tensor:
        self._source.fill(position, self._ids)
        return torch.from_numpy(self._ids.astype(np.int64)).to(self._device)


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A batch on its way to a GPU."""

    ids: Tensor
    arrived: torch.cuda.Event

    def claim(self) -> Tensor:
        """The batch, for the stream that computes: it waits for the copy, the caller does not."""
        stream = torch.cuda.current_stream(self.ids.device)
        stream.wait_event(self.arrived)
        self.ids.record_stream(stream)
        return self.ids


class _Pinned:
    """Batches for a GPU: half the bytes go over, from two buffers in turn."""

    def __init__(self, source: _Source, device: torch.device) -> None:
        self._source, self._device = source, device
        shape = (source.batch_size, source.windows.seq_length + 1)
        self._buffers = [torch.empty(shape, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def batch(self, position: int) -> _OnDevice:
        turn, self._turn = self._turn, 1 - self._turn
        buffer, before = self._buffers[turn], self._copied[turn]
        if before is not None:
            before.synchronize()  # the copy out of this buffer
        self._source.fill(position, buffer.numpy().view("<u4"))
        with torch.cuda.stream(self._stream):
            # Ids from 2^31 on are negative in the view; the mask undoes that.
            ids = buffer.to(self._device, non_blocking=True).long().bitwise_and_(_LOW_BITS)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        self._copied[turn] = arrived
        return _OnDevice(ids, arrived)

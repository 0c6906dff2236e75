"""Batches that are read ahead on a thread and placed on a device."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from apr.data.listing import ID_DTYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from apr.data.monitor import ShardMonitor
    from apr.data.windows import TrainingOrder, Windows

# A thread stuck in a disk that does not answer is abandoned after this many seconds. It is a daemon, and
# ends with the process.
_JOIN_SECONDS = 1.0
# Ids are uint32. From 2^31 on they are negative in a tensor of int32; this mask makes them positive again.
_UINT32_MASK = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Reads the windows of batches into buffers."""

    windows: Windows
    order: TrainingOrder
    batch_size: int
    monitor: ShardMonitor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a batch: windows, ids of each."""
        return self.batch_size, self.windows.seq_length + 1

    def fill(self, position: int, out: NDArray[np.uint32]) -> None:
        """Read the windows at `position` … `position + batch_size` into `out`, uint32 of `shape`."""
        indices = self.order.windows(position, self.batch_size)
        self.windows.gather(indices, out)
        # Polled after reading: if the shard has not changed until now, the ids are the right ones.
        self.monitor.poll(self.windows, indices)


class ReadAhead:
    """A thread that reads batches ahead; its errors are raised where the batch is taken.

    Args:
        source: reads the windows.
        positions: of the batches in the training order, without end.
        device: where batches are placed.
        prefetch: batches that may wait to be taken.
    """

    def __init__(
        self, source: BatchSource, positions: Iterator[int], device: torch.device, prefetch: int
    ) -> None:
        self._ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException] = queue.SimpleQueue()
        # One item per batch that may be read ahead; a queue is faster here than a semaphore.
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        stop = threading.Event()
        for _ in range(prefetch):
            self._permits.put(None)
        self.process = os.getpid()
        """The process that the thread runs in; a fork does not have it."""
        # The thread holds no reference to this object: a reader that is dropped is collected, which ends the
        # thread.
        thread = threading.Thread(
            target=_read_ahead,
            args=(source, positions, device, self._ready, self._permits, stop),
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
    # The garbage collector may run the finalizer in the thread itself, which cannot join itself.
    if thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


def _read_ahead(
    source: BatchSource,
    positions: Iterator[int],
    device: torch.device,
    ready: queue.SimpleQueue[Tensor | _OnDevice | BaseException],
    permits: queue.SimpleQueue[None],
    stop: threading.Event,
) -> None:
    try:
        batches = _PinnedBatches(source, device) if device.type == "cuda" else _HostBatches(source, device)
        for position in positions:
            permits.get()
            if stop.is_set():
                return
            ready.put(batches.read(position))
    except BaseException as error:  # noqa: BLE001 (raised again by the consumer)
        ready.put(error)


class _HostBatches:
    """Batches for a device that reads host memory."""

    def __init__(self, source: BatchSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self._ids = np.empty(source.shape, ID_DTYPE)

    def read(self, position: int) -> Tensor:
        self._source.fill(position, self._ids)
        # A new array each time: the buffer is filled again while the consumer still uses the last batch.
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

    def __init__(self, source: BatchSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self._buffers = [torch.empty(source.shape, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        # A stream of its own, so that copies overlap with the step that is being computed.
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

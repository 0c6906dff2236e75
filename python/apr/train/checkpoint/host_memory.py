"""Host memory for a copy of a checkpoint's tensors, which is written while training continues."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apr.train.parallel.shard import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A view of any dtype may start at a multiple of this many bytes.
_ALIGNMENT = 64


class HostMemory:
    """One block of host memory, allocated once and reused for every checkpoint.

    For tensors on a GPU the block is pinned, which makes the copy several times as fast.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._preparing: threading.Thread | None = None

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Start to allocate the block for copies of these tensors, on a thread of its own.

        A block of which no page was touched makes the first copy nine times as slow as the next one (1.6 GB:
        6.2 s and 0.7 s), and pinning takes about a second per GB: the first checkpoint would delay a step by
        so much.
        """

        def allocate() -> None:
            # `copy` tries again, and raises the error.
            with suppress(RuntimeError, MemoryError):
                self._allocate(tensors.values())

        # A daemon: a run that ends before its first checkpoint waits for no page.
        self._preparing = threading.Thread(target=allocate, name="apr-host-memory", daemon=True)
        try:
            self._preparing.start()
        except RuntimeError:  # the system has no more threads
            self._preparing = None

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the tensors in the block. The next call overwrites them."""
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        sizes = _sizes(tensors.values())
        if self._block is None or len(self._block) != sum(sizes):
            self._allocate(tensors.values())
        assert self._block is not None
        copies = {}
        for (name, tensor), part in zip(tensors.items(), torch.split(self._block, sizes), strict=True):
            copies[name] = part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name].copy_(whole(tensor), non_blocking=True)
        cuda = _gpu(tensors.values())
        if cuda is not None:
            # The copies are asynchronous, and the next step changes the weights that they read.
            torch.cuda.synchronize(cuda)
        return copies

    def _allocate(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        block = torch.empty(sum(_sizes(tensors)), dtype=torch.uint8)
        # Each page is touched here, and not in a copy that a step waits for.
        block.zero_()
        cuda = _gpu(tensors)
        if cuda is not None and _pin(block, cuda):
            weakref.finalize(self, _unpin, block)
        self._block = block


def _pin(block: Tensor, device: torch.device) -> bool:
    """Pin a block in place, and return whether that worked; the system may limit how much is pinned.

    torch's own pinned memory would be rounded up to a power of two: 8.6 GB for a checkpoint of 5.9 GB.
    """
    # The current device is one of each thread, and using another one takes memory there.
    with torch.cuda.device(device):
        registered = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.nbytes, 0)  # type: ignore[no-untyped-call]
        return int(registered) == 0


def _unpin(block: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(block.data_ptr())  # type: ignore[no-untyped-call]


def _sizes(tensors: Iterable[Tensor]) -> list[int]:
    """Return the bytes that each tensor takes in the block."""
    return [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]


def _gpu(tensors: Iterable[Tensor]) -> torch.device | None:
    return next((tensor.device for tensor in tensors if tensor.is_cuda), None)

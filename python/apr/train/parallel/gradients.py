"""Gradients added up over all ranks, while the backward pass still computes the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

# As DistributedDataParallel's: large enough that a transfer is not bound by its start, small enough that the
# last one, which nothing overlaps, is short.
_BUCKET_BYTES = 25 << 20


class RankSum(ABC):
    """Adds up gradients over all ranks, as DistributedDataParallel does.

    torch's wrapper expects that autograd computes every gradient, but that of the head is computed beside it
    (`add_gradients`), and the fast step writes its layers out. So whoever completes a gradient says so, and
    each bucket of them is sent while the backward pass goes on. All ranks complete them in the same order.
    Sums, not means: each gradient is already divided by the tokens of all ranks.
    """

    def __init__(self) -> None:
        self._overlaps = False
        self._bucket: list[Tensor] = []
        # By memory, not by tensor: a gradient may be a part of one that was sent as a whole.
        self._sent: set[int] = set()
        self._connected = False

    def connect(self, device: torch.device) -> None:
        """Connect the ranks, which NCCL does in its first call, and which a CUDA graph cannot capture."""
        if not self._connected:
            dist.all_reduce(torch.zeros((), device=device))
            self._connected = True

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """Send what `ready` gets within the context; outside, it is not the last micro-batch of a step."""
        self._overlaps = True
        try:
            yield
        finally:
            self._overlaps = False

    def ready(self, gradient: Tensor) -> None:
        """Send a gradient, together with the next ones; it must not change until `finish`."""
        if not self._overlaps:
            return
        if self._bucket and self._bucket[0].dtype != gradient.dtype:
            self._send()
        self._bucket.append(gradient)
        if sum(gradient.nbytes for gradient in self._bucket) >= _BUCKET_BYTES:
            self._send()

    def finish(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        """Wait for the gradients that were sent, send the others, and return the sums of all by name.

        Args:
            gradients: all of them, in the same order on all ranks; they may be overwritten.
            loss: replaced by its sum.
        """
        self._send()
        rest = [gradient for gradient in gradients.values() if _memory(gradient) not in self._sent]
        for dtype in dict.fromkeys(gradient.dtype for gradient in rest):
            self._bucket = [gradient for gradient in rest if gradient.dtype == dtype]
            self._send()
        self._sent.clear()
        return self._received(gradients, loss)

    def release(self) -> None:
        """Forget transfers that were begun: each holds on to the connections."""
        self._bucket.clear()

    @abstractmethod
    def _begin_sum(self, gradients: list[Tensor]) -> None:
        """Begin to add up tensors of one dtype over all ranks."""

    @abstractmethod
    def _received(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        """Wait for all sums that were begun, and return those of the gradients; replace the loss by its."""

    def _send(self) -> None:
        if self._bucket:
            self._begin_sum(self._bucket)
            self._sent |= {_memory(gradient) for gradient in self._bucket}
            self._bucket = []


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def watch(parameters: Iterable[Tensor], ready: Callable[[Tensor], None]) -> None:
    """Call a function with each gradient as soon as autograd has completed it."""

    def completed(parameter: Tensor) -> None:
        assert parameter.grad is not None
        ready(parameter.grad)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(completed)  # type: ignore[no-untyped-call]


class AllReduce(RankSum):
    """Sums in the order that NCCL or gloo finds fastest. They replace the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._works: list[dist.Work] = []

    def release(self) -> None:
        """Forget transfers that were begun: each holds on to the connections."""
        super().release()
        self._works.clear()

    def _begin_sum(self, gradients: list[Tensor]) -> None:
        # One call for all of them, which packs them; torch's own FSDP uses this manager too.
        with _coalescing_manager(async_ops=True) as works:
            for gradient in gradients:
                dist.all_reduce(gradient)
        self._works += works.works

    def _received(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        dist.all_reduce(loss)
        for work in self._works:
            work.wait()
        self._works.clear()
        return gradients

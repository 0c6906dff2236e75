"""Gradients added up over all ranks, while the backward pass still computes the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

# As DistributedDataParallel's: large enough that a transfer is not bound by its start, small enough that the
# last one, which nothing overlaps, is short.
_BUCKET_BYTES = 25 << 20


class RankSum(ABC):
    """Adds up gradients over all ranks, as DistributedDataParallel does.

    torch's wrapper expects that autograd computes every gradient. That of the head is computed beside it
    (`add_gradients`), and the fast step has bfloat16 copies of the parameters. So this uses what the wrapper
    is made of: hooks that run when a parameter's gradient is complete, and a transfer for each bucket of
    them. Sums, not means: each gradient is already divided by the tokens of all ranks.

    Args:
        parameters: those that autograd computes gradients of, in the order of the forward pass.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._buckets: list[list[Tensor]] = []
        self._bucket_of: dict[Tensor, int] = {}
        self._fill_buckets(parameters)
        self._overlaps = False
        self._missing: list[int] = []
        self._next = 0
        self._sent: set[int] = set()
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._on_complete)  # type: ignore[no-untyped-call]
        self._connected = False

    def connect(self, device: torch.device) -> None:
        """Connect the ranks, which NCCL does in its first call, and which a CUDA graph cannot capture."""
        if not self._connected:
            dist.all_reduce(torch.zeros((), device=device))
            self._connected = True

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """Send each bucket as soon as the backward pass within the context has completed it."""
        self._overlaps = True
        self._missing = [len(bucket) for bucket in self._buckets]
        self._next = 0
        try:
            yield
        finally:
            self._overlaps = False

    def finish(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        """Wait for the gradients that were sent, send the others, and return the sums of all by name.

        Args:
            gradients: all of them, in the same order on all ranks; they may be overwritten.
            loss: replaced by its sum.
        """
        rest = [gradient for gradient in gradients.values() if gradient.data_ptr() not in self._sent]
        for dtype in dict.fromkeys(gradient.dtype for gradient in rest):
            self._send([gradient for gradient in rest if gradient.dtype == dtype])
        self._sent.clear()
        return self._received(gradients, loss)

    @abstractmethod
    def _begin_sum(self, gradients: list[Tensor]) -> None:
        """Begin to add up tensors of one dtype over all ranks."""

    @abstractmethod
    def _received(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        """Wait for all sums that were begun, and return those of the gradients; replace the loss by its."""

    def _fill_buckets(self, parameters: Sequence[Tensor]) -> None:
        # From the last one on, as the backward pass reaches them.
        nbytes = 0
        for parameter in reversed(parameters):
            if not self._buckets or nbytes + parameter.nbytes > _BUCKET_BYTES:
                self._buckets.append([])
                nbytes = 0
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            nbytes += parameter.nbytes

    def _on_complete(self, parameter: Tensor) -> None:
        if not self._overlaps:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        # In order, so that all ranks send the same bucket at the same time.
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._send([p.grad for p in self._buckets[self._next] if p.grad is not None])
            self._next += 1

    def _send(self, gradients: list[Tensor]) -> None:
        self._begin_sum(gradients)
        self._sent |= {gradient.data_ptr() for gradient in gradients}


class AllReduce(RankSum):
    """Sums in the order that NCCL or gloo finds fastest. They replace the gradients."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._works: list[dist.Work] = []

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

"""The gradients of a step as a sum in a fixed order: the same bits on 1, 2, 4 or 8 ranks.

Floating-point addition is not associative, so the order of a sum decides its last bits. Here it depends on
the number of micro-batches of a step alone. Let that be 2^k times an odd number q. Each q of them in a row
are added one after another, and the 2^k sums are the leaves of a complete binary tree: neighbors are added,
then the sums of neighbors, up to the root. A power of two ranks, none without a micro-batch, gives each rank
a complete subtree.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from apr.train.parallel.gradients import RankSum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor


def run_length(micro_batches: int) -> int:
    """Return how many micro-batches in a row are added one after another: the odd factor of their number."""
    return micro_batches // (micro_batches & -micro_batches)


def pairwise_sum(leaves: Sequence[Tensor]) -> Tensor:
    """Return the sum of a power of two tensors in the order of the tree; bfloat16 is added in float32."""
    sums = [leaf.float() if leaf.dtype == torch.bfloat16 else leaf for leaf in leaves]
    while len(sums) > 1:
        sums = [left + right for left, right in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


class SubtreeSum:
    """Adds up the leaves that one rank has, with a partial sum for each level of the tree at most.

    The sums are float32. The root has the same addresses in each step, as a captured graph needs it.
    """

    def __init__(self) -> None:
        # The level and the sums of complete subtrees that wait for their neighbor, the largest first.
        self._waiting: list[tuple[int, Mapping[str, Tensor]]] = []
        self._free: list[Mapping[str, Tensor]] = []
        self._losses: list[Tensor] = []

    def add(self, gradients: Mapping[str, Tensor], loss: Tensor) -> None:
        """Add the next leaf; its tensors may be overwritten afterwards."""
        level, part = 0, gradients
        while self._waiting and self._waiting[-1][0] == level:
            _, left = self._waiting.pop()
            torch._foreach_add_(list(left.values()), list(part.values()))
            if level:
                self._free.append(part)
            level, part = level + 1, left
        self._waiting.append((level, part if level else self._copied(gradients)))
        self._losses.append(loss.clone())

    def root(self) -> tuple[Mapping[str, Tensor], Tensor]:
        """Return the sums of all leaves, of a power of two of them, and begin again."""
        ((_, root),) = self._waiting
        loss = pairwise_sum(self._losses)
        self._waiting.clear()
        self._losses.clear()
        self._free.append(root)  # the last one: the first leaf of the next step takes it
        return root, loss

    def _copied(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self._free:
            copies = self._free.pop()
        else:
            copies = {name: torch.empty_like(g, dtype=torch.float32) for name, g in gradients.items()}
        torch._foreach_copy_(list(copies.values()), list(gradients.values()))
        return copies


class TreeSum(RankSum):
    """Sums over ranks in the order of the tree.

    Each rank gets a share of a bucket from all ranks, adds up what it got, and all ranks get the result:
    together as many bytes as an all-reduce, where pairwise exchanges of everything would take log2(ranks)
    times the gradients. The sums are float32, and stay at the same addresses.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # The sums of each bucket, in the order in which they are sent.
        self._sums: list[Tensor] = []
        self._begun = 0
        # The gradients of this step, and for each the sums in a row.
        self._parts: list[tuple[Tensor, Tensor]] = []
        # Beside the backward pass.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def _begin_sum(self, gradients: list[Tensor]) -> None:
        ranks = dist.get_world_size()
        with self._beside():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            share = -(-len(flat) // ranks)
            shares = F.pad(flat, (0, share * ranks - len(flat)))
            received = torch.empty_like(shares)
            dist.all_to_all_single(received, shares)
            own = pairwise_sum(received.view(ranks, share).unbind())
            if self._begun == len(self._sums):
                self._sums.append(torch.empty(share * ranks, device=flat.device))
            sums = self._sums[self._begun]
            dist.all_gather_into_tensor(sums, own)
        self._begun += 1
        parts = torch.split(sums[: len(flat)], [gradient.numel() for gradient in gradients])
        self._parts += zip(gradients, parts, strict=True)

    def _received(self, gradients: Mapping[str, Tensor], loss: Tensor) -> Mapping[str, Tensor]:
        with self._beside():
            losses = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
            dist.all_gather(losses, loss)
            loss.copy_(pairwise_sum(losses))
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        totals = {name: self._total(gradient) for name, gradient in gradients.items()}
        self._parts.clear()
        self._begun = 0
        return totals

    def _total(self, gradient: Tensor) -> Tensor:
        """Return the sum of a gradient, which may have been sent as a part of a larger one."""
        start = gradient.data_ptr()
        for sent, sums in self._parts:
            if sent.data_ptr() <= start < sent.data_ptr() + sent.nbytes:
                first = (start - sent.data_ptr()) // sent.itemsize
                return sums[first : first + gradient.numel()].view(gradient.shape)
        raise AssertionError("every gradient was sent")

    def _beside(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)

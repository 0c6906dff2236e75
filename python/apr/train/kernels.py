"""Triton kernels of the fast step on a GPU. Importing this module imports Triton.

Each stands beside a plain version that computes the same: `cross_entropy_gradient` beside `loss.softmax`, and
`UpdateKernels` beside torch's AdamW and `get_total_norm`. A test compares each pair.
"""

# Parameters of kernels have no annotation but `constexpr`, and constants are upper case, as in Triton.
# ruff: noqa: ANN001, ANN202, FBT001, N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Elements that one program of the update takes: 16 per thread, so that every access has 16 bytes or more.
_UPDATE_BLOCK, _UPDATE_WARPS = 2048, 4
# Logits that one program of the cross entropy takes at a time.
_LOGITS_BLOCK, _LOGITS_WARPS = 16384, 32
# Sizes and addresses that are multiples of this allow vector accesses.
_VECTOR = 16


def cross_entropy_gradient(logits: Tensor, targets: Tensor, tokens: int) -> Tensor:
    """Return the cross entropy of each row, and overwrite the logits by the gradient of the mean loss.

    The gradient is (softmax - one at the target) / tokens, computed in float32 and rounded once. No other
    tensor of the logits' size is allocated: for 16,384 tokens and 151,936 ids that saves 9.3 GiB of float32
    log probabilities and 4.6 GiB of gradient.

    Args:
        logits: contiguous [N, V] on a GPU, float32 or bfloat16.
        targets: int64 [N], each below V.
        tokens: what the gradient is divided by.

    Returns:
        float32 [N], in nats.
    """
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _cross_entropy[(rows,)](
        logits, targets, losses, vocab, 1 / tokens, BLOCK=_LOGITS_BLOCK, num_warps=_LOGITS_WARPS
    )
    return losses


@triton.jit
def _cross_entropy(logits, targets, losses, vocab, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab
    target = tl.load(targets + row)
    # Read before anything is overwritten.
    at_target = tl.load(logits + target).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    # Each lane keeps its own maximum and sum; they meet once, after the loop. The maximum is finite, because
    # the difference of two infinities is NaN.
    highest = tl.full([BLOCK], -1e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab, BLOCK):
        inside = first + columns < vocab
        # Kept in the L2 cache: the second loop reads them again.
        x = tl.load(
            logits + first + columns, mask=inside, other=-float("inf"), eviction_policy="evict_last"
        ).to(tl.float32)
        higher = tl.maximum(highest, x)
        total = total * tl.exp(highest - higher) + tl.exp(x - higher)
        highest = higher
    peak = tl.max(highest, 0)
    log_sum = peak + tl.log(tl.sum(total * tl.exp(highest - peak), 0))
    log_probability = at_target - log_sum
    tl.store(losses + row, -log_probability)
    # p - 1 as a series where p is close to 1: exp(log p) - 1 loses all digits there.
    series = log_probability * (
        1 + log_probability / 2 * (1 + log_probability / 3 * (1 + log_probability / 4))
    )
    minus_one = tl.where(log_probability > -0.03, series, tl.exp(log_probability) - 1)
    for first in range(0, vocab, BLOCK):
        inside = first + columns < vocab
        x = tl.load(logits + first + columns, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.where(first + columns == target, minus_one, tl.exp(x - log_sum)) * scale
        tl.store(
            logits + first + columns,
            gradient.to(logits.dtype.element_ty),
            mask=inside,
            eviction_policy="evict_first",
        )


class UpdateKernels:
    """The gradient norm and AdamW's update of many tensors, one launch each for each dtype of gradients.

    The addresses of all tensors are read from a table, so the tensors must stay where they are. The update
    also writes the weights in bfloat16, which the next step computes with.

    Args:
        weights: float32.
        moments: first and second moment of each weight, float32.
        gradients: of each weight, bfloat16 or float32.
        copies: bfloat16, one for each weight.
        decays: weight decay of each weight.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        moments: Sequence[tuple[Tensor, Tensor]],
        gradients: Sequence[Tensor],
        copies: Sequence[Tensor],
        decays: Sequence[float],
    ) -> None:
        device = weights[0].device
        # Kept alive: the tables have nothing but their addresses.
        self._tensors = [*weights, *gradients, *copies, *(m for pair in moments for m in pair)]
        assert all(tensor.is_contiguous() for tensor in self._tensors)
        self._groups: list[_Group] = []
        for dtype in (torch.bfloat16, torch.float32):
            members = [i for i, gradient in enumerate(gradients) if gradient.dtype == dtype]
            if not members:
                continue
            table, chunks = [], []
            for row, i in enumerate(members):
                tensors = (weights[i], *moments[i], gradients[i], copies[i])
                table.append([*(tensor.data_ptr() for tensor in tensors), weights[i].numel()])
                chunks += [(row, block) for block in range(triton.cdiv(weights[i].numel(), _UPDATE_BLOCK))]
            aligned = all(number % _VECTOR == 0 for numbers in table for number in numbers)
            self._groups.append(
                _Group(
                    torch.tensor(table, device=device),
                    torch.tensor([decays[i] for i in members], device=device),
                    torch.tensor(chunks, dtype=torch.int32, device=device),
                    tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
                    aligned,
                )
            )
        # A place for each program, summed afterwards: atomic additions would come in any order.
        self._sums = torch.empty(
            sum(len(group.chunks) for group in self._groups), dtype=torch.float32, device=device
        )

    def norm(self) -> Tensor:
        """Return the norm of all gradients together: float32 []."""
        first = 0
        for group in self._groups:
            _square_sums[(len(group.chunks),)](
                group.table,
                group.chunks,
                self._sums[first:],
                DTYPE=group.dtype,
                ALIGNED=group.aligned,
                BLOCK=_UPDATE_BLOCK,
                num_warps=_UPDATE_WARPS,
            )
            first += len(group.chunks)
        return self._sums.sum(dtype=torch.float64).sqrt().float()

    def update(
        self, *, step: Tensor, lr: Tensor, scale: Tensor, skip: Tensor, betas: tuple[float, float], eps: float
    ) -> None:
        """Update weights, moments and copies (https://arxiv.org/abs/1711.05101), unless `skip` is 1.

        All tensors are of one element on the device, so that nothing waits for the host.

        Args:
            step: number of updates so far; this one is added to it.
            lr: learning rate.
            scale: the gradients are divided by it.
            skip: 1 to change nothing, else 0.
            betas: decay rates of the moments.
            eps: term added to the denominator.
        """
        step += 1 - skip
        # In float64: 1 - beta2^step of the first steps loses digits in float32.
        first, second = (1 - beta ** step.double() for beta in betas)
        numbers = torch.stack([skip.double(), scale.double(), lr.double(), lr / first, second.sqrt()]).float()
        for group in self._groups:
            _adamw[(len(group.chunks),)](
                group.table,
                group.decays,
                group.chunks,
                numbers,
                *betas,
                *(1 - beta for beta in betas),
                eps,
                DTYPE=group.dtype,
                ALIGNED=group.aligned,
                BLOCK=_UPDATE_BLOCK,
                num_warps=_UPDATE_WARPS,
            )


class _Group:
    """The tensors whose gradients have one dtype.

    Attributes:
        table: int64 [tensors, 6]: addresses of weight, both moments, gradient and copy, and the size.
        decays: float32 [tensors].
        chunks: int32 [programs, 2]: the tensor and the block within it that a program takes.
        dtype: Triton's dtype of the gradients.
        aligned: whether all addresses and sizes allow vector accesses.
    """

    def __init__(self, table: Tensor, decays: Tensor, chunks: Tensor, dtype: tl.dtype, aligned: bool) -> None:
        self.table, self.decays, self.chunks, self.dtype, self.aligned = table, decays, chunks, dtype, aligned


@triton.jit
def _square_sums(table, chunks, sums, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = table + tl.load(chunks + 2 * program) * 6
    gradients = tl.load(row + 3).to(tl.pointer_type(DTYPE))
    size = tl.load(row + 5)
    if ALIGNED:
        gradients = tl.multiple_of(gradients, 16)
        size = tl.multiple_of(size, 16)
    at = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gradient = tl.load(gradients + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(sums + program, tl.sum(gradient * gradient, 0))


@triton.jit
def _adamw(
    table,
    decays,
    chunks,
    numbers,
    beta1,
    beta2,
    rest1,
    rest2,
    eps,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(numbers) == 0:
        program = tl.program_id(0)
        tensor = tl.load(chunks + 2 * program)
        row = table + tensor * 6
        weights = tl.load(row).to(tl.pointer_type(tl.float32))
        firsts = tl.load(row + 1).to(tl.pointer_type(tl.float32))
        seconds = tl.load(row + 2).to(tl.pointer_type(tl.float32))
        gradients = tl.load(row + 3).to(tl.pointer_type(DTYPE))
        copies = tl.load(row + 4).to(tl.pointer_type(tl.bfloat16))
        size = tl.load(row + 5)
        if ALIGNED:
            weights = tl.multiple_of(weights, 16)
            firsts = tl.multiple_of(firsts, 16)
            seconds = tl.multiple_of(seconds, 16)
            gradients = tl.multiple_of(gradients, 16)
            copies = tl.multiple_of(copies, 16)
            size = tl.multiple_of(size, 16)
        at = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        gradient = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32) / tl.load(numbers + 1)
        weight = tl.load(weights + at, mask=inside)
        first = beta1 * tl.load(firsts + at, mask=inside) + rest1 * gradient
        second = beta2 * tl.load(seconds + at, mask=inside) + rest2 * gradient * gradient
        weight -= tl.load(numbers + 2) * tl.load(decays + tensor) * weight
        weight -= tl.load(numbers + 3) * first / (tl.sqrt(second) / tl.load(numbers + 4) + eps)
        tl.store(firsts + at, first, mask=inside)
        tl.store(seconds + at, second, mask=inside)
        tl.store(weights + at, weight, mask=inside)
        tl.store(copies + at, weight.to(tl.bfloat16), mask=inside)

"""The held-out loss: each token counts once, and the batch size changes no bit of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from apr.data.split import evaluation_windows
from apr.train.loss import token_losses
from apr.train.machine.device import computing
from apr.train.parallel.world import ALONE, World
from apr.train.record.metrics import perplexity

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.data.windows import Windows
    from apr.model.decoder import Decoder
    from apr.train.config import Precision


# Tokens of a forward pass, by kind of device. The last bits of a matrix product depend on its shape, so the
# shape must depend on nothing that a user changes for speed or memory. On a CPU, 2,048 tokens are as fast as
# any number from 512 to 8,192 (CPU time within 8 %, 4 M parameters, windows of 128 to 1,024). On a GPU they
# are those of the default batch, 16 x 1024.
_GROUP_TOKENS = {"cpu": 2_048, "cuda": 16_384}


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    val_loss: float
    """Mean cross entropy of a predicted token, in nats."""
    val_tokens: int
    """Number of predicted tokens."""

    @property
    def val_ppl(self) -> float:
        """Perplexity: exp of the loss."""
        return perplexity(self.val_loss)


def group_size(seq_length: int, device: torch.device) -> int:
    """Return the number of windows that an evaluation computes at a time; at least one."""
    return max(1, _GROUP_TOKENS[device.type] // seq_length)


def evaluate(
    model: Decoder,
    held_out: Windows,
    *,
    val_tokens: int,
    precision: Precision,
    world: World = ALONE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return the mean cross entropy over held-out windows, taken in stream order.

    Windows are computed in groups of a fixed size, which are dealt to the ranks. Each group's losses are
    summed in float64, and the sums are added exactly and rounded once, so that it does not matter who
    computes which group.

    Args:
        model: the model, on the device to compute on.
        held_out: the windows to evaluate on.
        val_tokens: number of tokens to evaluate on: the first windows that contain so many, or all of them.
        precision: fp32, or bf16 to compute in bfloat16; losses are float32 in both.
        world: the ranks that share the work; all of them call this, and get the same result.
        on_progress: called with (windows done, windows in total) before each round, in which each rank
            computes a group; may raise to stop, on all ranks.
    """
    device = model.head_weight.device
    count = evaluation_windows(held_out, val_tokens)
    # Summed in float64: float32 drops losses once the sum is 2^24 times larger than one of them.
    size, sums = group_size(held_out.seq_length, device), []
    starts = range(0, count, size)
    with torch.no_grad(), computing(device, precision):
        for first in range(0, len(starts), world.size):
            if on_progress is not None:
                on_progress(starts[first], count)
            # A rank without a group in the last round computes the last one too: all ranks take part in each
            # forward pass of a model that is divided among them.
            start = starts[min(first + world.rank, len(starts) - 1)]
            group = held_out.batch(np.arange(start, min(start + size, count)))
            # The sum stays on the device: reading it after each group would make the host wait.
            ids = torch.from_numpy(group).to(device, non_blocking=True)
            sums.append(token_losses(model, ids).sum(dtype=torch.float64))
    of_ranks = world.gather(torch.stack(sums).tolist())
    in_order = [total for turn in zip(*of_ranks, strict=True) for total in turn][: len(starts)]
    # Each window predicts as many tokens, and none is padded: the mean is over tokens, not over groups, whose
    # last one may be smaller.
    tokens = count * held_out.seq_length
    return Evaluation(math.fsum(in_order) / tokens, tokens)

"""The held-out loss: each token once, summed in float64, independent of batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apr.data.split import evaluation_windows
from apr.train.loss import token_losses
from apr.train.machine.device import computing

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.data.windows import Windows
    from apr.model.decoder import Decoder
    from apr.train.config import Precision

_LARGEST_EXPONENT = 700  # e^709 overflows


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured."""

    val_loss: float
    """Mean cross entropy of a predicted token, nats."""
    val_tokens: int
    """Predicted tokens."""

    @property
    def val_ppl(self) -> float:
        """Perplexity."""
        return perplexity(self.val_loss)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is beyond a float."""
    return math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)


def evaluate(
    model: Decoder,
    held_out: Windows,
    *,
    val_tokens: int,
    batch_size: int,
    precision: Precision,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Mean cross entropy over held-out windows in stream order.

    Args:
        model: on the device to compute on.
        held_out: the windows; all of them are taken, or the first that hold `val_tokens`.
        val_tokens: see there.
        batch_size: windows at a time; changes nothing but speed and memory.
        precision: fp32, or bf16 for bfloat16 compute; losses are float32 in both.
        on_progress: called with (windows done, windows in all) before each batch; may raise to stop.
    """
    device = model.head_weight.device
    count = evaluation_windows(held_out, val_tokens)
    total, done = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad(), computing(device, precision):
        for batch in held_out.in_order(count, batch_size):
            if on_progress is not None:
                on_progress(done, count)
            ids = torch.from_numpy(batch).to(device, non_blocking=True)
            total += token_losses(model, ids).sum(dtype=torch.float64)
            done += len(batch)
    tokens = count * held_out.seq_length
    return Evaluation(total.item() / tokens, tokens)

"""The held-out loss: each token counts once, and the batch size changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apr.data.split import evaluation_windows
from apr.train.loss import token_losses
from apr.train.machine.device import computing
from apr.train.record.metrics import perplexity

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.data.windows import Windows
    from apr.model.decoder import Decoder
    from apr.train.config import Precision


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


def evaluate(
    model: Decoder,
    held_out: Windows,
    *,
    val_tokens: int,
    batch_size: int,
    precision: Precision,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return the mean cross entropy over held-out windows, taken in stream order.

    Args:
        model: the model, on the device to compute on.
        held_out: the windows to evaluate on.
        val_tokens: number of tokens to evaluate on: the first windows that contain so many, or all of them.
        batch_size: windows at a time; changes only speed and memory.
        precision: fp32, or bf16 to compute in bfloat16; losses are float32 in both.
        on_progress: called with (windows done, windows in total) before each batch; may raise to stop.
    """
    device = model.head_weight.device
    count = evaluation_windows(held_out, val_tokens)
    # Summed in float64: float32 drops losses once the sum is 2^24 times larger than one of them.
    total, done = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad(), computing(device, precision):
        for batch in held_out.in_order(count, batch_size):
            if on_progress is not None:
                on_progress(done, count)
            # The sum stays on the device: reading it after each batch would make the host wait.
            ids = torch.from_numpy(batch).to(device, non_blocking=True)
            total += token_losses(model, ids).sum(dtype=torch.float64)
            done += len(batch)
    # Each window predicts as many tokens, and none is padded: the mean is over tokens, not over batches,
    # whose last one may be smaller.
    tokens = count * held_out.seq_length
    return Evaluation(total.item() / tokens, tokens)

"""Cross entropy of the next token, without all logits in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from apr.model.decoder import Decoder

    Softmax = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

# Bytes of float32 logits held at a time. On a GPU a share of its memory: 16 384 tokens of a vocabulary of
# 151 936 in one piece on 80 GB, and each further piece costs 1 % of a step. On a CPU, what stays in the cache
# is read again for nothing.
_SHARE_OF_GPU = 1 / 8
_BYTES_ON_CPU = 16 << 20
# Below this many rows a matrix product no longer pays.
_LEAST_ROWS = 64


def token_losses(model: Decoder, ids: Tensor) -> Tensor:
    """Cross entropy of each next token, nats, computed in float32: the evaluation's way, without gradients.

    Args:
        model: the decoder.
        ids: int64 [B, T + 1]: inputs and, shifted by one, targets.

    Returns:
        float32 [B * T].
    """
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:].flatten()
    rows = rows_at_a_time(model.config.vocab_size, ids.device)
    losses = []
    for first in range(0, len(targets), rows):
        part = slice(first, first + rows)
        logits = F.linear(hidden[part], model.head_weight).float()
        losses.append(F.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(losses)


def softmax(logits: Tensor, targets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Log probability of each target, and the probabilities of all ids as shares of `tokens`.

    Returns:
        float32 [N]; [N, V] in the logits' dtype, rounded once from float32.
    """
    log_probabilities = F.log_softmax(logits, -1, dtype=torch.float32)
    chosen = log_probabilities.gather(-1, targets[:, None]).squeeze(-1)
    return chosen, log_probabilities.exp_().div_(tokens).to(logits.dtype)


def add_gradients(model: Decoder, ids: Tensor, tokens: int, *, softmax: Softmax = softmax) -> Tensor:
    """Add the gradients of a batch's summed loss, divided by `tokens`, to the parameters' `grad`.

    The gradient of the logits is their softmax less one at the target, so that each chunk of logits goes
    straight into the gradients of head and hidden state: none is kept for the way back, none computed twice.

    Args:
        model: the decoder; under autocast its head is multiplied in that dtype too.
        ids: int64 [B, T + 1]: inputs and, shifted by one, targets.
        tokens: what the sum is divided by: all tokens of the step, so that micro-batches add up.
        softmax: `softmax`, or a compiled form of it.

    Returns:
        The sum of the losses divided by `tokens`, nats, float64 [].
    """
    head, targets = model.head_weight, ids[:, 1:].flatten()
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        weight, inputs = head.to(dtype), hidden.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=ids.device)
        of_hidden = torch.empty_like(inputs)
        of_head: Tensor | None = None
        rows = rows_at_a_time(model.config.vocab_size, ids.device)
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            chosen, gradient = softmax(F.linear(inputs[part], weight), targets[part], tokens)
            at_target = torch.expm1(chosen).div_(tokens)
            gradient.scatter_(-1, targets[part, None], at_target[:, None].to(dtype))
            total -= chosen.sum(dtype=torch.float64)
            torch.mm(gradient, weight, out=of_hidden[part])
            product = gradient.T @ inputs[part]
            of_head = product.to(head.dtype) if of_head is None else of_head.add_(product)
        assert of_head is not None
        head.grad = of_head if head.grad is None else head.grad.add_(of_head)
    hidden.backward(of_hidden.to(hidden.dtype))  # type: ignore[no-untyped-call]
    return total / tokens


def rows_at_a_time(vocab_size: int, device: torch.device) -> int:
    """Tokens whose logits are held at a time."""
    nbytes = (
        int(torch.cuda.get_device_properties(device).total_memory * _SHARE_OF_GPU)
        if device.type == "cuda"
        else _BYTES_ON_CPU
    )
    return max(_LEAST_ROWS, nbytes // (4 * vocab_size))

"""Cross entropy of the next token, computed without holding all logits in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from apr.model.decoder import softcap_slope, softcapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from apr.model.decoder import Decoder

    Softmax = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

# Bytes of logits held at a time. On a GPU it is a fraction of its memory: 16,384 tokens of a vocabulary of
# 151,936 in one chunk of float32 on 80 GB, or 32,768 in bfloat16; each further chunk costs 1 % of a step. On
# a CPU, a chunk that stays in the cache is not read from memory a second time.
_FRACTION_OF_GPU = 1 / 8
_BYTES_ON_CPU = 16 << 20
# Matrix products of fewer rows than this lose more speed than the memory is worth.
_MIN_ROWS = 64
# Bytes of float32 logits that an evaluation holds at a time. It has no gradient to keep, so that small chunks
# cost little; on a GPU they do not depend on its memory, because a product's last bits depend on its shape.
_EVALUATION_BYTES = {"cpu": 2 << 20, "cuda": 320 << 20}
_MIN_EVALUATION_ROWS = 8
# A GPU computes so many rows of a matrix product at a time.
_TILE_ROWS = 128


def token_losses(model: Decoder, ids: Tensor) -> Tensor:
    """Return the cross entropy of each next token, in nats, computed in float32. Evaluation uses this.

    Args:
        model: the decoder.
        ids: int64 [B, T + 1]: inputs and, shifted by one, targets.

    Returns:
        float32 [B * T].
    """
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:].flatten()
    rows = evaluation_rows(model.config.vocab_size, ids.device)
    losses = []
    for first in range(0, len(targets), rows):
        part = slice(first, first + rows)
        logits = model.logits(hidden[part]).float()
        losses.append(F.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(losses)


def softmax(logits: Tensor, targets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the log probability of each target, and the probabilities of all ids divided by `tokens`.

    Returns:
        float32 [N]; [N, V] in the logits' dtype, rounded once from float32.
    """
    log_probabilities = F.log_softmax(logits, -1, dtype=torch.float32)
    at_target = log_probabilities.gather(-1, targets[:, None]).squeeze(-1)
    # In place: for 16,384 tokens and 151,936 ids, one float32 tensor of this shape takes 9.3 GiB.
    return at_target, log_probabilities.exp_().div_(tokens).to(logits.dtype)


def add_gradients(model: Decoder, ids: Tensor, tokens: int, *, softmax: Softmax = softmax) -> Tensor:
    """Add the gradients of a batch's summed loss, divided by `tokens`, to the parameters' `grad`.

    The gradient of the logits is their softmax minus one at the target. Each chunk of logits therefore goes
    straight into the gradients of the head and the hidden states: none is kept for the backward pass, and
    none is computed twice.

    Args:
        model: the decoder; under autocast its head is multiplied in that dtype too.
        ids: int64 [B, T + 1]: inputs and, shifted by one, targets.
        tokens: what the sum is divided by: all tokens of the step, so that micro-batches add up.
        softmax: the function `softmax` of this module, or a compiled form of it.

    Returns:
        The sum of the losses divided by `tokens`, in nats, float64 [].
    """
    targets, cap = ids[:, 1:].flatten(), model.config.final_softcap
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    # Not before: of a model that is divided among ranks, the head is whole only now.
    head = model.head_weight
    # That of the parameter, unless FSDP adds up gradients in another one.
    grad_dtype = getattr(head, "grad_dtype", None) or head.dtype
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    # Autocast does not cast operations with `out=`, so the dtypes are chosen here.
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        weight, inputs = head.to(dtype), hidden.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=ids.device)
        hidden_grad = torch.empty_like(inputs)
        head_grad: Tensor | None = None
        rows = rows_at_a_time(model.config.vocab_size, ids.device)
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            logits = softcapped(F.linear(inputs[part], weight), cap)
            log_probability, gradient = softmax(logits, targets[part], tokens)
            # p - 1 at the target, as expm1 of log p: exp(log p) - 1 loses all digits where p is close to 1.
            at_target = torch.expm1(log_probability).div_(tokens)
            gradient.scatter_(-1, targets[part, None], at_target[:, None].to(dtype))
            if cap is not None:
                gradient.mul_(softcap_slope(logits, cap))
            total -= log_probability.sum(dtype=torch.float64)
            torch.mm(gradient, weight, out=hidden_grad[part])
            product = gradient.T @ inputs[part]
            head_grad = product.to(grad_dtype) if head_grad is None else head_grad.add_(product)
        assert head_grad is not None
        # Before `backward`, which adds the embedding's gradient to this one if the head is tied.
        head.grad = head_grad if head.grad is None else head.grad.add_(head_grad)
    hidden.backward(hidden_grad.to(hidden.dtype))  # type: ignore[no-untyped-call]
    return total / tokens


def rows_at_a_time(vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Return the number of tokens whose logits are held in memory at a time, in this dtype."""
    if device.type == "cuda":
        nbytes = int(torch.cuda.get_device_properties(device).total_memory * _FRACTION_OF_GPU)
    else:
        nbytes = _BYTES_ON_CPU
    return max(_MIN_ROWS, nbytes // (dtype.itemsize * vocab_size))


def evaluation_rows(vocab_size: int, device: torch.device) -> int:
    """Return the number of tokens whose logits an evaluation holds in memory at a time."""
    rows = _EVALUATION_BYTES[device.type] // (torch.float32.itemsize * vocab_size)
    if device.type == "cuda":
        return max(_TILE_ROWS, rows // _TILE_ROWS * _TILE_ROWS)
    return max(_MIN_EVALUATION_ROWS, rows)

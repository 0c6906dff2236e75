"""Cross entropy of the next token, without all logits in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.decoder import Decoder

# Tokens whose logits are held at a time: 4096 of Qwen's 151 936 take 2.5 GB in float32.
CHUNK = 4096


def token_losses(model: Decoder, ids: Tensor) -> Tensor:
    """Cross entropy of each next token, nats, computed in float32.

    Args:
        model: the decoder.
        ids: int64 [B, T + 1]: inputs and, shifted by one, targets.

    Returns:
        float32 [B * T].
    """
    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    targets = ids[:, 1:].flatten()
    if len(targets) <= CHUNK:
        return _losses(hidden, model.head_weight, targets)
    # With gradients, a chunk's logits are computed again on the way back instead of being kept.
    parts = (
        checkpoint(_losses, part, model.head_weight, target, use_reentrant=False)
        if torch.is_grad_enabled()
        else _losses(part, model.head_weight, target)
        for part, target in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
    )
    return torch.cat(list(parts))


def _losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="none")

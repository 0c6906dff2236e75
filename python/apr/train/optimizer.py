"""AdamW over two groups of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import AdamW

from apr.model.fill import EMBEDDING

if TYPE_CHECKING:
    from apr.model.decoder import Decoder
    from apr.train.config import PretrainConfig


def make_optimizer(model: Decoder, config: PretrainConfig) -> AdamW:
    """AdamW with weight decay on matrices alone: not on norms, biases and the embedding."""
    decayed = {name for name, p in model.named_parameters() if p.dim() >= 2 and name != EMBEDDING}
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if n in decayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)

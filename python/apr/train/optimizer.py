"""AdamW over two groups of parameters: with weight decay and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim import AdamW

from apr.model.names import EMBEDDING

if TYPE_CHECKING:
    from apr.model.decoder import Decoder
    from apr.train.config import PretrainConfig


def make_optimizer(model: Decoder, config: PretrainConfig) -> AdamW:
    """Return AdamW with weight decay on matrices only: not on norms, biases and the embedding.

    All of its state exists from the start and is zero.
    """
    # A rare token's embedding gets no gradient for many steps; decay alone would shrink it.
    decayed = {name for name, p in model.named_parameters() if p.dim() >= 2 and name != EMBEDDING}
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if n in decayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    device = model.head_weight.device
    cuda = device.type == "cuda"
    optimizer = AdamW(
        groups,
        # On a GPU the rate is a tensor: a captured CUDA graph replays constants, but reads memory each time.
        lr=torch.zeros((), device=device) if cuda else 0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        # One kernel for all parameters. It also reads `found_inf` and `grad_scale`, by which `Step` skips and
        # clips.
        fused=True,
        capturable=cuda,
    )
    # torch creates this state in the first update. A checkpoint to restore, and a first step that is skipped,
    # need it before.
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_learning_rate(optimizer: AdamW, lr: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            # In place: a captured graph reads this memory, and another tensor would never be seen by it.
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr

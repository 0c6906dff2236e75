"""AdamW's moments under the names that a checkpoint gives them, and their digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import AdamW

    from apr.model.decoder import Decoder

# The format's name for each of AdamW's moments.
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def moments(model: Decoder, optimizer: AdamW) -> dict[str, Tensor]:
    """`m.NAME` and `v.NAME` of every parameter."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][key]
        for moment, key in MOMENTS.items()
        for name, parameter in model.named_parameters()
    }


def optimizer_digest(model: Decoder, optimizer: AdamW, step: int) -> str:
    """SHA-256 of the optimizer's state: moments in name order, then the step."""
    return digest(moments(model, optimizer), step)


def digest(stored: dict[str, Tensor], step: int) -> str:
    """SHA-256 of moments in name order, then of the step."""
    sha = hashlib.sha256()
    for name in sorted(stored):
        sha.update(stored[name].cpu().contiguous().numpy().data)
    sha.update(step.to_bytes(8, "little"))
    return sha.hexdigest()

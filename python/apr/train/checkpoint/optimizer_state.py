"""AdamW's moments, under the names that a checkpoint gives them, and their digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import AdamW

    from apr.model.decoder import Decoder

# The file format's name of each moment, and torch's.
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def moments(model: Decoder, optimizer: AdamW) -> dict[str, Tensor]:
    """Return the moments `m.NAME` and `v.NAME` of every parameter."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][key]
        for moment, key in MOMENTS.items()
        for name, parameter in model.named_parameters()
    }


def digest(moments: dict[str, Tensor], step: int) -> str:
    """Return the SHA-256 of the moments in the order of their names, then of the step, in hexadecimal."""
    sha256 = hashlib.sha256()
    for name in sorted(moments):
        sha256.update(moments[name].cpu().contiguous().numpy().data)
    # Eight bytes in a fixed order: the digest must be the same on every machine.
    sha256.update(step.to_bytes(8, "little"))
    return sha256.hexdigest()

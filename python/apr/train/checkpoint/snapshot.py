"""Checkpoints: one `.apr` file with weights under transformers' names and all that resuming needs.

It holds no path, time or host: two runs of the same thing write the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container.load import load
from apr.container.save import TensorSpec, bytes_of, spec_of, write
from apr.model.names import TRAINING_PREFIX
from apr.train.checkpoint.optimizer_state import digest, moments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW
    from typing_extensions import Buffer

    from apr.model.decoder import Decoder
    from apr.train.checkpoint.host_memory import Room
    from apr.train.checkpoint.state import RunState


@dataclass(frozen=True)
class Snapshot:
    """All of a run at one step, in memory that training does not touch."""

    step: int
    tensors: dict[str, Tensor]
    """As the file has them, on the CPU."""
    metadata: dict[str, Any]

    def write(self, path: Path, *, proceed: Callable[[], None] = lambda: None) -> str:
        """Write it and read it back.

        Args:
            path: replaced only once the new file is whole.
            proceed: called before each tensor; may raise to give up, which leaves nothing behind.

        Returns:
            SHA-256 of the optimizer's state, as `optimizer_digest` has it.

        Raises:
            OSError: it cannot be written.
            AprError: what was written does not verify.
        """

        def values(spec: TensorSpec) -> Buffer:
            proceed()
            return bytes_of(self.tensors[spec.name])

        specs = [spec_of(name, tensor) for name, tensor in self.tensors.items()]
        write(path, self.metadata, specs, values)
        load(path, verify="full").close()
        prefix = f"{TRAINING_PREFIX}optimizer."
        stored = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        del stored["step"]
        return digest(stored, self.step)


def snapshot(
    model: Decoder, optimizer: AdamW, state: RunState, facts: dict[str, Any], room: Room
) -> Snapshot:
    """Copy all that a checkpoint holds.

    Args:
        model: its parameters are stored in their own dtype.
        optimizer: AdamW over all of them.
        state: goes into the metadata, under `training`.
        facts: the other metadata; its `training` holds what is fixed for the run.
        room: where the copies lie.
    """
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {
        f"{TRAINING_PREFIX}optimizer.{name}": value for name, value in moments(model, optimizer).items()
    }
    tensors |= {
        f"{TRAINING_PREFIX}optimizer.step": torch.tensor(state.updates),
        f"{TRAINING_PREFIX}scheduler.last_lr": torch.tensor(
            float(optimizer.param_groups[0]["lr"]), dtype=torch.float64
        ),
        f"{TRAINING_PREFIX}rng.cpu": torch.get_rng_state(),
        f"{TRAINING_PREFIX}meta.epoch": torch.tensor(state.epochs),
    }
    device = model.head_weight.device
    if device.type == "cuda":
        tensors[f"{TRAINING_PREFIX}rng.cuda"] = torch.cuda.get_rng_state(device)
    metadata = {**facts, "training": {**facts["training"], "state": state.to_dict()}}
    return Snapshot(state.step, room.copy(tensors), metadata)

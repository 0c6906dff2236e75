"""A checkpoint: one `.apr` file with the weights, under transformers' names, and all that resuming needs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container.load import load
from apr.container.save import bytes_of, spec_of, write
from apr.model.names import TRAINING_PREFIX
from apr.train.checkpoint.optimizer_state import digest, moments
from apr.train.checkpoint.state import RunState
from apr.train.parallel.shard import is_sharded, whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW
    from typing_extensions import Buffer

    from apr.container.save import TensorSpec
    from apr.model.decoder import Decoder
    from apr.train.checkpoint.host_memory import HostMemory
    from apr.train.checkpoint.metadata import CheckpointMetadata

OPTIMIZER = f"{TRAINING_PREFIX}optimizer."


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, copied to memory that training does not change."""

    step: int
    tensors: dict[str, Tensor]
    """The tensors of the file, on the CPU."""
    metadata: dict[str, Any]

    def write(self, path: Path, *, proceed: Callable[[], None] = lambda: None) -> str:
        """Write the file and read it back.

        Args:
            path: the file; an existing one is replaced once the new one is complete.
            proceed: called before each tensor. If it raises, no file is left behind.

        Returns:
            SHA-256 of the optimizer's state, from `digest`.

        Raises:
            OSError: the file cannot be written.
            AprError: what was written does not verify.
        """

        def values(spec: TensorSpec) -> Buffer:
            proceed()
            return bytes_of(self.tensors[spec.name])

        specs = [spec_of(name, tensor) for name, tensor in self.tensors.items()]
        # The step is hashed as an integer after the moments, so its tensor is left out here.
        stored = {
            name.removeprefix(OPTIMIZER): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(OPTIMIZER) and name != f"{OPTIMIZER}step"
        }
        # Meanwhile, because hashing takes one core longer than reading takes all of them. A daemon: nobody
        # waits for it if the file cannot be written.
        digests: list[str] = []
        hashing = threading.Thread(target=lambda: digests.append(digest(stored, self.step)), daemon=True)
        hashing.start()
        write(path, self.metadata, specs, values)
        # Every byte is read back: only then does the checkpoint count, and may older ones go.
        load(path, verify="full").close()
        hashing.join()
        return digests[0]


def reserve(model: Decoder, optimizer: AdamW, memory: HostMemory) -> None:
    """Start to allocate the memory of snapshots, so that the first one need not wait for it."""
    memory.prepare(_tensors(model, optimizer, RunState()))


def take_part(model: Decoder, optimizer: AdamW) -> None:
    """Help another rank to take a snapshot of a model that is divided among them."""
    if is_sharded(model):
        for tensor in _tensors(model, optimizer, RunState()).values():
            whole(tensor)


def snapshot(
    model: Decoder, optimizer: AdamW, state: RunState, metadata: CheckpointMetadata, memory: HostMemory
) -> Snapshot:
    """Copy everything that a checkpoint contains.

    Args:
        model: its parameters are stored in their own dtype.
        optimizer: AdamW over all of them.
        state: the counters and history of the run.
        metadata: what all checkpoints of the run have in their metadata.
        memory: where the tensors are copied to; the next snapshot in it overwrites them.
    """
    return Snapshot(state.step, memory.copy(_tensors(model, optimizer, state)), metadata.to_dict(state))


def _tensors(model: Decoder, optimizer: AdamW, state: RunState) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, where training keeps them."""
    # The order of the tensors is the order in the file: it must not change, or equal runs differ in bytes.
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {f"{OPTIMIZER}{name}": value for name, value in moments(model, optimizer).items()}
    lr = float(optimizer.param_groups[0]["lr"])
    # Skipped steps do not count for AdamW's bias correction, hence `updates` and not `step`.
    tensors |= {
        f"{OPTIMIZER}step": torch.tensor(state.updates),
        # float64: on the CPU the rate is a Python float, which float32 would round.
        f"{TRAINING_PREFIX}scheduler.last_lr": torch.tensor(lr, dtype=torch.float64),
        f"{TRAINING_PREFIX}rng.cpu": torch.get_rng_state(),
        f"{TRAINING_PREFIX}meta.epoch": torch.tensor(state.epochs),
    }
    device = model.head_weight.device
    if device.type == "cuda":
        tensors[f"{TRAINING_PREFIX}rng.cuda"] = torch.cuda.get_rng_state(device)
    return tensors

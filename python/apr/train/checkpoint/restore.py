"""Bringing optimizer and random numbers to where a checkpoint is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from apr.container.load import load
from apr.errors import RefusedError
from apr.model.names import TRAINING_PREFIX
from apr.train.checkpoint.optimizer_state import MOMENTS
from apr.train.checkpoint.state import state_of
from apr.train.optimizer import set_learning_rate

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW

    from apr.container.tensor_file import TensorFile
    from apr.model.decoder import Decoder
    from apr.train.checkpoint.state import RunState


def restore(path: Path, model: Decoder, optimizer: AdamW, facts: dict[str, Any]) -> RunState:
    """Bring the optimizer and the random numbers to where a checkpoint of the same run is.

    Args:
        path: the checkpoint, verified.
        model: it has the checkpoint's weights by now.
        optimizer: over its parameters.
        facts: as given to `snapshot`; the data must be the same.

    Raises:
        AprError: not a valid file.
        RefusedError: no checkpoint of this run; says what is missing or differs.
    """
    with load(path) as file:
        state = state_of(file)
        for part, key in (("data", "corpus_sha256"), ("held_out", "corpus_sha256"), ("held_out", "start")):
            if file.metadata["training"].get(part, {}).get(key) != facts["training"][part][key]:
                flag = "--dataset" if part == "data" else "--val-dataset"
                raise RefusedError(
                    f"{path}: the shards of {flag} are no longer those that this run was started on: "
                    "name where they lie now, or take --force to start anew"
                )
        step = _state_tensor(file, "optimizer.step")
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            moments["step"].copy_(step)
            for moment, key in MOMENTS.items():
                moments[key].copy_(_state_tensor(file, f"optimizer.{moment}.{name}"))
        if model.head_weight.device.type == "cuda" and f"{TRAINING_PREFIX}rng.cuda" in file:
            torch.cuda.set_rng_state(_state_tensor(file, "rng.cuda").clone())
        set_learning_rate(optimizer, _state_tensor(file, "scheduler.last_lr").item())
        torch.set_rng_state(_state_tensor(file, "rng.cpu").clone())
        return state


def _state_tensor(file: TensorFile, name: str) -> Tensor:
    try:
        return file[TRAINING_PREFIX + name]
    except KeyError:
        raise RefusedError(f"{file.path}: cannot be resumed: it has no {TRAINING_PREFIX}{name}") from None

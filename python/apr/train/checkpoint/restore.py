"""Restoring optimizer, learning rate and random numbers from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.container.load import load
from apr.errors import RefusedError
from apr.model.names import TRAINING_PREFIX
from apr.train.checkpoint.optimizer_state import MOMENTS
from apr.train.checkpoint.state import state_of
from apr.train.optimizer import set_learning_rate
from apr.train.parallel.shard import assign

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW

    from apr.container.tensor_file import TensorFile
    from apr.model.decoder import Decoder
    from apr.train.checkpoint.metadata import TrainingFacts
    from apr.train.checkpoint.state import RunState


def restore(path: Path, model: Decoder, optimizer: AdamW, training: TrainingFacts) -> RunState:
    """Restore all that a checkpoint has beyond the weights, and return the run's state.

    Args:
        path: the checkpoint, already verified.
        model: a model that has the checkpoint's weights.
        optimizer: AdamW over its parameters.
        training: the facts of the resumed run; its data must be the checkpoint's.

    Raises:
        AprError: the file is not valid.
        RefusedError: the checkpoint is of other data, or lacks state.
    """
    with load(path) as file:
        state = state_of(file)
        _check_same_data(file, training)
        step = _tensor(file, "optimizer.step")
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            moments["step"].copy_(step)
            for moment, key in MOMENTS.items():
                assign(moments[key], _tensor(file, f"optimizer.{moment}.{name}"))
        # A checkpoint written on the CPU has no state of a GPU's generator.
        if model.head_weight.device.type == "cuda" and f"{TRAINING_PREFIX}rng.cuda" in file:
            torch.cuda.set_rng_state(_tensor(file, "rng.cuda").clone())
        set_learning_rate(optimizer, _tensor(file, "scheduler.last_lr").item())
        torch.set_rng_state(_tensor(file, "rng.cpu").clone())
        return state


def _check_same_data(file: TensorFile, training: TrainingFacts) -> None:
    stored = file.metadata["training"]
    # By hash, not by path: a directory may have moved. A run on other data would continue with another order
    # of windows, and with held-out text that it may have trained on.
    data, held_out = stored.get("data", {}), stored.get("held_out", {})
    if data.get("corpus_sha256") != training["data"]["corpus_sha256"]:
        flag = "--dataset"
    elif (
        held_out.get("corpus_sha256") != training["held_out"]["corpus_sha256"]
        or held_out.get("start") != training["held_out"]["start"]
    ):
        flag = "--val-dataset"
    else:
        return
    raise RefusedError(
        f"{file.path}: the shards of {flag} are not those that this run was started with; "
        f"pass {flag} with their new location, or pass --force to start over",
        path=file.path,
    )


def _tensor(file: TensorFile, name: str) -> Tensor:
    try:
        return file[TRAINING_PREFIX + name]
    except KeyError:
        raise RefusedError(
            f"{file.path}: cannot be resumed; {TRAINING_PREFIX}{name} is missing", path=file.path
        ) from None

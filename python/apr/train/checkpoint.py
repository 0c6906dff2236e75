"""Checkpoints: one `.apr` file with weights under transformers' names and all that resuming needs.

It holds no path, time or host: two runs of the same thing write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container.file import TRAINING_PREFIX, load
from apr.container.save import save
from apr.errors import RefusedError
from apr.files import write_json
from apr.model.fill import fill
from apr.train.optimizer import set_learning_rate
from apr.train.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW

    from apr.container.file import AprFile
    from apr.model.decoder import Decoder

# The format's name for each of AdamW's moments.
_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a run directory."""

    path: Path
    step: int
    epoch: int | None
    """Of an epoch's file, from 0; None for one that was saved on the way."""

    @property
    def metadata_path(self) -> Path:
        """The JSON file beside it."""
        return self.path.with_suffix(".metadata.json")


def epoch_path(run_dir: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch goes."""
    return run_dir / "ckpt" / f"epoch-{epoch:03}.apr"


def step_path(run_dir: Path, step: int) -> Path:
    """Where a checkpoint on the way goes."""
    return run_dir / "ckpt" / f"step-{step:08}.apr"


def write_checkpoint(
    path: Path, model: Decoder, optimizer: AdamW, state: RunState, facts: dict[str, Any]
) -> str:
    """Write a checkpoint and read it back.

    Args:
        path: replaced only once the new file is whole.
        model: its parameters are stored in their own dtype.
        optimizer: AdamW over all of them.
        state: goes into the metadata, under `training`.
        facts: the other metadata; its `training` holds what is fixed for the run.

    Returns:
        SHA-256 of the optimiser's state, moments in name order, then the step.

    Raises:
        OSError: it cannot be written.
        AprError: what was written does not verify.
    """
    moments = _moments(model, optimizer)
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {f"{TRAINING_PREFIX}optimizer.{name}": value for name, value in moments.items()}
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
    path.parent.mkdir(exist_ok=True)
    save(tensors, path, metadata)
    load(path, verify="full").close()
    return _digest(moments, state.step)


def optimizer_digest(model: Decoder, optimizer: AdamW, step: int) -> str:
    """SHA-256 of the optimiser's state, as `write_checkpoint` gives it."""
    return _digest(_moments(model, optimizer), step)


def restore(path: Path, model: Decoder, optimizer: AdamW, facts: dict[str, Any]) -> RunState:
    """Fill model and optimiser from a checkpoint of the same run.

    Args:
        path: the checkpoint; every byte of it is verified.
        model: its parameters are overwritten.
        optimizer: over these parameters.
        facts: as given to `write_checkpoint`; the data must be the same.

    Raises:
        AprError: not a valid file.
        RefusedError: no checkpoint of this run; says what is missing or differs.
    """
    with load(path, verify="full") as file:
        state = state_of(file)
        for part, key in (("data", "corpus_sha256"), ("held_out", "corpus_sha256"), ("held_out", "start")):
            if file.metadata["training"].get(part, {}).get(key) != facts["training"][part][key]:
                raise RefusedError(
                    f"{path}: the shards are no longer those that this run was started on ({part})"
                )
        fill(model, file)
        step = _state_tensor(file, "optimizer.step")
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            moments["step"].copy_(step)
            for moment, key in _MOMENTS.items():
                moments[key].copy_(_state_tensor(file, f"optimizer.{moment}.{name}"))
        if model.head_weight.device.type == "cuda" and f"{TRAINING_PREFIX}rng.cuda" in file:
            torch.cuda.set_rng_state(_state_tensor(file, "rng.cuda").clone())
        set_learning_rate(optimizer, _state_tensor(file, "scheduler.last_lr").item())
        torch.set_rng_state(_state_tensor(file, "rng.cpu").clone())
        return state


def state_of(file: AprFile) -> RunState:
    """The run's state in a checkpoint's metadata.

    Raises:
        RefusedError: the file is no checkpoint.
    """
    try:
        return RunState(**file.metadata["training"]["state"])
    except (KeyError, TypeError):
        raise RefusedError(
            f"{file.path}: no checkpoint of a run: its metadata hold no training state"
        ) from None


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The checkpoints of a run, the furthest last.

    Raises:
        AprError, RefusedError: one of them does not open, or is none.
    """
    found = []
    for path in sorted((run_dir / "ckpt").glob("*.apr")):
        with load(path) as file:
            state = state_of(file)
        found.append(
            Checkpoint(path, state.step, state.epochs - 1 if path.name.startswith("epoch-") else None)
        )
    # At the same step, an epoch's file knows the evaluation too.
    return sorted(found, key=lambda c: (c.step, c.epoch is not None))


def prune(checkpoints: list[Checkpoint], keep: int, best_epoch: int | None) -> list[Checkpoint]:
    """Remove all but the last `keep` epochs' and the best; what is left.

    One saved on the way goes when there is a later one. The metadata file of an epoch stays and says so.
    """
    kept = []
    of_epochs = [c for c in checkpoints if c.epoch is not None]
    wanted = {c.path for c in (*of_epochs[-keep:], checkpoints[-1])}
    wanted |= {c.path for c in of_epochs if c.epoch == best_epoch}
    for checkpoint in checkpoints:
        if checkpoint.path in wanted:
            kept.append(checkpoint)
            continue
        if checkpoint.metadata_path.exists():
            facts = json.loads(checkpoint.metadata_path.read_text())
            write_json(checkpoint.metadata_path, {**facts, "pruned": True})
        checkpoint.path.unlink()
    return kept


def _state_tensor(file: AprFile, name: str) -> Tensor:
    try:
        return file[TRAINING_PREFIX + name]
    except KeyError:
        raise RefusedError(f"{file.path}: cannot be resumed: it has no {TRAINING_PREFIX}{name}") from None


def _moments(model: Decoder, optimizer: AdamW) -> dict[str, Tensor]:
    """`m.NAME` and `v.NAME` of every parameter."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][key]
        for moment, key in _MOMENTS.items()
        for name, parameter in model.named_parameters()
    }


def _digest(moments: dict[str, Tensor], step: int) -> str:
    digest = hashlib.sha256()
    for name in sorted(moments):
        digest.update(moments[name].cpu().contiguous().numpy().data)
    digest.update(step.to_bytes(8, "little"))
    return digest.hexdigest()

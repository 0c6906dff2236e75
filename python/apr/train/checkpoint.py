"""Checkpoints: one `.apr` file with weights under transformers' names and all that resuming needs.

It holds no path, time or host: two runs of the same thing write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container import torch_dtypes
from apr.container.file import TRAINING_PREFIX, load
from apr.container.save import TensorSpec, bytes_of, spec_of, write
from apr.errors import AprError, RefusedError, message
from apr.files import write_json
from apr.train.optimizer import set_learning_rate
from apr.train.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.optim import AdamW
    from typing_extensions import Buffer

    from apr.container.file import AprFile
    from apr.model.decoder import Decoder
    from apr.train.config import PretrainConfig

# The format's name for each of AdamW's moments.
_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_NAME = re.compile(r"(epoch|step)-\d+\.apr")
# Bytes: what a view of any dtype may start at.
_ALIGNED = 64


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
        moments = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        del moments["step"]
        return _digest(moments, self.step)


class Room:
    """Host memory for the tensors of a checkpoint: taken once, used for one after the other.

    For tensors on a GPU it is pinned, which makes the copy several times as fast; where the system pins no
    more, it is not.
    """

    def __init__(self) -> None:
        self._bytes: Tensor | None = None

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors, good until the next call."""
        sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors.values()]
        cuda = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if self._bytes is None or len(self._bytes) != sum(sizes):
            self._bytes = _take(sum(sizes), pinned=cuda is not None)
        copies = {}
        for (name, tensor), part in zip(tensors.items(), torch.split(self._bytes, sizes), strict=True):
            copies[name] = part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name].copy_(tensor, non_blocking=True)
        if cuda is not None:
            torch.cuda.synchronize(cuda)
        return copies


def _take(size: int, *, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        if not pinned:
            raise
        return torch.empty(size, dtype=torch.uint8)


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
        f"{TRAINING_PREFIX}optimizer.{name}": value for name, value in _moments(model, optimizer).items()
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


def export_weights(path: Path, model: Decoder, facts: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the weights alone in another dtype, and read them back.

    Args:
        path: replaced only once the new file is whole.
        model: what to export.
        facts: metadata.
        dtype: of every tensor in the file.

    Raises:
        OSError: it cannot be written.
        AprError: what was written does not verify.
    """
    parameters = dict(model.named_parameters())
    name_of = torch_dtypes.NAMES[dtype]
    specs = [TensorSpec(name, name_of, tuple(p.shape)) for name, p in parameters.items()]
    write(path, facts, specs, lambda spec: bytes_of(parameters[spec.name].detach().to(dtype)))
    load(path, verify="full").close()


def optimizer_digest(model: Decoder, optimizer: AdamW, step: int) -> str:
    """SHA-256 of the optimizer's state: moments in name order, then the step."""
    return _digest(_moments(model, optimizer), step)


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


def list_checkpoints(run_dir: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints of a run, the furthest last; and files under their names that are none, and why not.

    Only the structure of the files is looked at.
    """
    found, broken = [], {}
    for path in sorted((run_dir / "ckpt").glob("*.apr")):
        kind = _NAME.fullmatch(path.name)
        if kind is None:
            continue
        try:
            with load(path) as file:
                state = state_of(file)
        except (AprError, RefusedError, OSError) as error:
            broken[path] = message(error)
            continue
        found.append(Checkpoint(path, state.step, state.epochs - 1 if kind[1] == "epoch" else None))
    # At the same step, an epoch's file knows the evaluation too.
    return sorted(found, key=lambda c: (c.step, c.epoch is not None)), broken


def best_of(checkpoints: Sequence[Checkpoint], val_losses: Sequence[float]) -> Checkpoint | None:
    """Of the epoch with the lowest held-out loss, among those that are there.

    Args:
        checkpoints: in the order of their steps; those on the way do not count.
        val_losses: of each epoch, from 0.
    """
    of_epochs = [(val_losses[c.epoch], c) for c in checkpoints if c.epoch is not None]
    return min(of_epochs, key=lambda pair: pair[0])[1] if of_epochs else None


def mark(checkpoint: Path, what: str) -> None:
    """Have an epoch's metadata file say what became of its checkpoint; nothing where there is none."""
    path = checkpoint.with_suffix(".metadata.json")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    write_json(path, {**facts, what: True})


def prune(
    checkpoints: list[Checkpoint], config: PretrainConfig, val_losses: Sequence[float]
) -> list[Checkpoint]:
    """Remove what --keep does not ask for; what is left.

    Of the epochs' files and of those that --save-every asks for, the last few stay, and the best epoch's. One
    that was saved because of a signal goes when there is a later one. An epoch's metadata file stays and says
    that its checkpoint went.
    """
    of_epochs = [c for c in checkpoints if c.epoch is not None]
    on_the_way = [c for c in checkpoints if c.epoch is None and config.saves_on_the_way(c.step)]
    last = [*of_epochs[-config.keep :], *on_the_way[-config.keep :], *checkpoints[-1:]]
    best = best_of(checkpoints, val_losses)
    wanted = {c.path for c in [*last, *([best] if best else [])]}
    kept = []
    for checkpoint in checkpoints:
        if checkpoint.path in wanted:
            kept.append(checkpoint)
            continue
        mark(checkpoint.path, "pruned")
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

"""What a run needs of memory and disk, and what there is."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.filesize import decimal

from apr.errors import RefusedError
from apr.model.names import parameter_shapes
from apr.train.loss import rows_at_a_time
from apr.train.machine.device import default_precision, free_memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from apr.model.config import ModelConfig
    from apr.train.config import Precision, PretrainConfig


@dataclass(frozen=True)
class Needs:
    """Estimates, in bytes, beside what is free."""

    device: torch.device
    precision: Precision
    groups: dict[str, int]
    """Parameters of embedding, attention, mlp, norms and head; a tied head has none of its own."""
    flops_a_token: int
    """See `flops_a_token`."""
    memory_bytes: int
    free_memory_bytes: int | None
    """None where the system does not say."""
    checkpoint_bytes: int
    """Of one: weights and two moments, float32."""
    disk_bytes: int
    """Of all that are there at a time, but for those that a resumed run has by now."""
    free_disk_bytes: int

    @classmethod
    def of(cls, config: PretrainConfig, model: ModelConfig, device: torch.device) -> Self:
        """What a run of this model needs on this device."""
        precision = config.precision or default_precision(device)
        groups = parameter_groups(model)
        parameters = sum(groups.values())
        checkpoint = 12 * parameters
        return cls(
            device=device,
            precision=precision,
            groups=groups,
            flops_a_token=flops_a_token(model, groups, config.seq_length),
            # On the CPU also the copy from which a checkpoint is written; a GPU's is in the host's memory.
            memory_bytes=_memory_bytes(config, model, parameters, precision, device)
            + (checkpoint if device.type == "cpu" else 0),
            free_memory_bytes=free_memory_bytes(device),
            checkpoint_bytes=checkpoint,
            disk_bytes=_disk_bytes(config, checkpoint, parameters),
            free_disk_bytes=shutil.disk_usage(existing(config.run_dir)).free,
        )

    @property
    def parameters(self) -> int:
        """Of all groups."""
        return sum(self.groups.values())

    def check_memory(self) -> None:
        """Whether the device has enough of it.

        Raises:
            RefusedError: it has not.
        """
        free = self.free_memory_bytes
        if free is not None and self.memory_bytes > free:
            raise RefusedError(
                f"about {self.memory_bytes / 2**30:.1f} GiB of memory are needed, "
                f"{self.device} has {free / 2**30:.1f} free: "
                "lower --batch-size and raise --grad-accum, or lower --seq-length"
            )

    def check_disk(self, config: PretrainConfig) -> None:
        """Whether the checkpoints have room.

        Raises:
            RefusedError: they have none.
        """
        if self.disk_bytes > self.free_disk_bytes:
            raise RefusedError(
                f"{config.run_dir}: checkpoints need {decimal(self.disk_bytes)}, "
                f"{decimal(self.free_disk_bytes)} are free: lower --keep or choose another --run-dir"
            )


def parameter_groups(model: ModelConfig) -> dict[str, int]:
    """Parameters of a decoder by what they are part of; a tied head has none of its own."""
    groups = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    parts = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "mlp", "lm_head": "head"}
    for name, shape in parameter_shapes(model).items():
        group = next((parts[part] for part in name.split(".") if part in parts), "norms")
        groups[group] += math.prod(shape)
    return groups


def flops_a_token(model: ModelConfig, groups: dict[str, int], seq_length: int) -> int:
    """FLOPs of a token, forward and backward, in windows of `seq_length`.

    6 a parameter that multiplies (an embedding without a head's work only looks up), and
    12 · layers · heads · head_dim · seq_length for attention, whose causal half is not taken off
    (https://arxiv.org/abs/2204.02311, appendix B).
    """
    looked_up = 0 if model.tie_word_embeddings else groups["embedding"]
    attention = 12 * model.num_layers * model.num_heads * model.head_dim * seq_length
    return 6 * (sum(groups.values()) - looked_up) + attention


def existing(path: Path) -> Path:
    """The directory itself, or the nearest above it that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _disk_bytes(config: PretrainConfig, checkpoint: int, parameters: int) -> int:
    # The best one, the ones to keep, and the one being written.
    files = min(config.keep + 2, config.epochs)
    if config.save_every is not None:
        files += min(config.keep, config.num_steps // config.save_every)
    there = 0
    if config.resume:
        # Where none are asked for on the way, one is there of a run that was stopped: beside the epochs'.
        names = "epoch-*.apr" if config.save_every is None else "*.apr"
        there = sum(path.stat().st_size for path in (config.run_dir / "ckpt").glob(names))
    return max(0, files * checkpoint - there) + (2 * parameters if config.save_dtype == "bf16" else 0)


def _memory_bytes(
    config: PretrainConfig,
    model: ModelConfig,
    parameters: int,
    precision: Precision,
    device: torch.device,
) -> int:
    """Weights, gradients and moments in float32; activations that the backward pass needs; logits."""
    width = 2 if precision == "bf16" else 4
    tokens = config.batch_size * config.seq_length
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    # Kept by a layer for each token: two residuals and norms, q, k, v before and after rotation and the
    # attention's output, gate, up, their product and silu.
    layer = 4 * model.hidden_size + 3 * attention + 4 * model.intermediate_size
    logits = min(tokens, rows_at_a_time(model.vocab_size, device)) * model.vocab_size * (width + 8)
    copies = 2 * parameters if precision == "bf16" else 0
    return 16 * parameters + copies + tokens * model.num_layers * layer * width + logits

"""The memory and disk space that a run needs, and how much is free."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

import torch
from rich.filesize import decimal

from apr.errors import RefusedError
from apr.model.names import parameter_shapes
from apr.train.checkpoint.paths import CHECKPOINTS
from apr.train.evaluation import group_size
from apr.train.loss import rows_at_a_time
from apr.train.machine.device import default_precision, free_memory_bytes
from apr.train.prepared import Needs

if TYPE_CHECKING:
    from pathlib import Path

    from apr.model.config import ModelConfig
    from apr.train.config import Precision, PretrainConfig

# Weights, gradients and AdamW's two moments are float32. A checkpoint has all of them but the gradients.
_TRAINING_BYTES, _CHECKPOINT_BYTES, _BF16_BYTES = 16, 12, 2


def estimate_needs(
    config: PretrainConfig, model: ModelConfig, device: torch.device, *, compiled: bool = False
) -> Needs:
    """Return what a run of this model needs on this device, and what is free."""
    precision = config.precision or default_precision(device)
    groups = parameter_groups(model)
    parameters = sum(groups.values())
    checkpoint = _CHECKPOINT_BYTES * parameters
    if compiled and device.type == "cuda" and precision == "bf16":
        memory = _fast_memory_bytes(config, model, groups, device)
    else:
        memory = _memory_bytes(config, model, parameters, precision, device)
    if device.type == "cpu":
        # The copy that a checkpoint is written from. A GPU's copy is in host memory.
        memory += checkpoint
    return Needs(
        device=device,
        precision=precision,
        groups=groups,
        flops_per_token=flops_per_token(model, groups, config.seq_length),
        memory_bytes=memory,
        free_memory_bytes=free_memory_bytes(device),
        checkpoint_bytes=checkpoint,
        disk_bytes=_disk_bytes(config, checkpoint, parameters),
        # With --plan the run directory need not exist, and is not created.
        free_disk_bytes=shutil.disk_usage(nearest_existing(config.run_dir)).free,
    )


def check_memory(needs: Needs) -> None:
    """Check that the device has enough free memory.

    Raises:
        RefusedError: it has too little.
    """
    free = needs.free_memory_bytes
    if free is not None and needs.memory_bytes > free:
        raise RefusedError(
            f"the run needs {needs.memory_bytes / 2**30:.1f} GiB of memory, but {needs.device} has only "
            f"{free / 2**30:.1f} GiB free; lower --batch-size and raise --grad-accum, or lower --seq-length"
        )


def check_disk(needs: Needs, run_dir: Path) -> None:
    """Check that the disk has enough free space for the checkpoints.

    Raises:
        RefusedError: it has too little.
    """
    if needs.disk_bytes > needs.free_disk_bytes:
        raise RefusedError(
            f"{run_dir}: checkpoints need {decimal(needs.disk_bytes)}, but only "
            f"{decimal(needs.free_disk_bytes)} are free; lower --keep or use another --run-dir",
            path=run_dir,
        )


def parameter_groups(model: ModelConfig) -> dict[str, int]:
    """Return the number of a decoder's parameters by part; a tied head has none of its own."""
    groups = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    parts = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "mlp", "lm_head": "head"}
    for name, shape in parameter_shapes(model).items():
        group = next((parts[part] for part in name.split(".") if part in parts), "norms")
        groups[group] += math.prod(shape)
    return groups


def flops_per_token(model: ModelConfig, groups: dict[str, int], seq_length: int) -> int:
    """Return the FLOPs of one token, forward and backward, in windows of `seq_length` tokens.

    They are 6 for each parameter that is multiplied with (an untied embedding is only looked up), plus
    12 * layers * heads * head_dim * seq_length for attention, without halving it for the causal mask
    (https://arxiv.org/abs/2204.02311, appendix B).
    """
    # A tied embedding is also the head, and there it is multiplied with.
    looked_up = 0 if model.tie_word_embeddings else groups["embedding"]
    attention = 12 * model.num_layers * model.num_heads * model.head_dim * seq_length
    return 6 * (sum(groups.values()) - looked_up) + attention


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _disk_bytes(config: PretrainConfig, checkpoint: int, parameters: int) -> int:
    # The best one, those that --keep asks for, and the one being written.
    # A run of few evaluations never has that many.
    files = min(config.keep + 2, config.evaluations_after(0))
    if config.save_every is not None:
        files += min(config.keep, config.num_steps // config.save_every)
    existing = 0
    if config.resume:
        # Without --save-every, a checkpoint between evaluations comes from a signal and is not among `files`.
        names = "epoch-*.apr" if config.save_every is None else "*.apr"
        existing = sum(path.stat().st_size for path in (config.run_dir / CHECKPOINTS).glob(names))
    export = _BF16_BYTES * parameters if config.save_dtype == "bf16" else 0
    return max(0, files * checkpoint - existing) + export


def _memory_bytes(
    config: PretrainConfig,
    model: ModelConfig,
    parameters: int,
    precision: Precision,
    device: torch.device,
) -> int:
    """Estimate weights, gradients and moments; activations kept for the backward pass; logits."""
    width = 2 if precision == "bf16" else 4
    tokens = config.batch_size * config.seq_length
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    # A layer keeps for each token: two residuals and norms; q, k, v before and after rotation, and the
    # attention's output; gate, up, their product and silu.
    layer = 4 * model.hidden_size + 3 * attention + 4 * model.intermediate_size
    # A chunk of logits in the computing dtype, and its log-softmax and gradient in float32.
    rows = min(tokens, rows_at_a_time(model.vocab_size, device))
    logits = rows * model.vocab_size * (width + 8)
    # An evaluation keeps one layer at a time, of a group that may have more tokens than a micro-batch.
    group = group_size(config.seq_length, device) * config.seq_length
    kept = tokens * _kept_elements(config, model, layer)
    activations = max(kept, group * layer) * width
    # Autocast keeps a bfloat16 copy of the weights within a step.
    copies = _BF16_BYTES * parameters if precision == "bf16" else 0
    return _TRAINING_BYTES * parameters + copies + activations + logits


def _fast_memory_bytes(
    config: PretrainConfig, model: ModelConfig, groups: dict[str, int], device: torch.device
) -> int:
    """Estimate the same for the fast step, whose logits become their gradient (`Bf16Copy`)."""
    parameters, tokens = sum(groups.values()), config.batch_size * config.seq_length
    # Weights and moments in float32; the copy and its gradients in bfloat16, but those of embedding and head
    # in float32; the sums of several micro-batches in float32.
    weights = 16 * parameters + 2 * (groups["embedding"] + groups["head"])
    if (config.grad_accum or 1) > 1:
        weights += 4 * parameters
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    # A layer keeps for each token: two residuals and norms; q, k, v and the attention's output; gate and up,
    # of which the rest is computed again.
    layer = 4 * model.hidden_size + 2 * attention + 3 * model.intermediate_size
    rows = min(tokens, rows_at_a_time(model.vocab_size, device, torch.bfloat16))
    logits = rows * model.vocab_size
    return weights + _BF16_BYTES * (tokens * _kept_elements(config, model, layer) + logits)


def _kept_elements(config: PretrainConfig, model: ModelConfig, layer: int) -> int:
    """Return the elements that the layers keep of each token for the backward pass, given those of one."""
    if config.activation_checkpointing:
        # The inputs of all of them, and one that is computed again.
        return model.num_layers * model.hidden_size + layer
    return model.num_layers * layer

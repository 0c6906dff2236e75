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
from apr.train.loss import evaluation_rows, rows_at_a_time
from apr.train.machine.device import default_precision, free_memory_bytes, memory_in_use
from apr.train.prepared import Needs

if TYPE_CHECKING:
    from pathlib import Path

    from apr.model.config import ModelConfig
    from apr.train.config import Precision, PretrainConfig, ResolvedConfig

# Weights, gradients and AdamW's two moments are float32. A checkpoint has all of them but the gradients.
_TRAINING_BYTES, _CHECKPOINT_BYTES, _BF16_BYTES = 16, 12, 2
# On a CPU, activations of 135 M to 494 M parameters' layers took 1.2 to 1.4 times their size, and torch's
# kernels, threads and workspaces 0.1 to 0.3 GiB beside any model.
_HEAP_LOSS, _RUNTIME_BYTES = 1.35, 256 << 20


def estimate_needs(
    config: PretrainConfig, model: ModelConfig, device: torch.device, *, compiled: bool = False
) -> Needs:
    """Return what a run of this model needs on this device, and what is free."""
    precision = config.precision or default_precision(device)
    groups = parameter_groups(model)
    parameters = sum(groups.values())
    checkpoint = _CHECKPOINT_BYTES * parameters
    return Needs(
        device=device,
        precision=precision,
        groups=groups,
        flops_per_token=flops_per_token(model, groups, config.seq_length),
        memory_bytes=memory_bytes(config.resolved(precision, compiled=compiled), model, device),
        free_memory_bytes=free_memory_bytes(device),
        memory_in_use_bytes=memory_in_use(device),
        checkpoint_bytes=checkpoint,
        disk_bytes=_disk_bytes(config, checkpoint, parameters),
        # With --plan the run directory need not exist, and is not created.
        free_disk_bytes=shutil.disk_usage(nearest_existing(config.run_dir)).free,
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


def memory_bytes(config: ResolvedConfig, model: ModelConfig, device: torch.device) -> int:
    """Estimate the memory that steps, evaluations and checkpoints of a run take at their peak, in bytes.

    The steps alone came within 5 % of what compiled ones of 135 M and 494 M parameters reserved on an H100,
    and within 12 % of the resident memory of layers of both on a CPU.
    """
    precision = config.precision
    groups = parameter_groups(model)
    parameters, tokens = sum(groups.values()), config.batch_size * config.seq_length
    evaluation = _evaluation_bytes(config, model, device, parameters)
    if config.shard_model and config.ranks > 1:
        return _sharded_bytes(config, model, device)
    if config.compile and device.type == "cuda" and precision == "bf16":
        # Weights and moments in float32; the copy and its gradients in bfloat16, but those of embedding and
        # head in float32; the sums of several micro-batches in float32.
        fixed = 16 * parameters + 2 * (groups["embedding"] + groups["head"])
        if config.grad_accum > 1:
            fixed += 4 * parameters
        # Two residuals and norms; q, k, v and the attention's output; gate and up. The rest of a layer is
        # computed again.
        attention = 2 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        layer = _BF16_BYTES * (4 * model.hidden_size + attention + 3 * model.intermediate_size)
        rows = min(tokens, rows_at_a_time(model.vocab_size, device, torch.bfloat16))
        logits = _BF16_BYTES * rows * model.vocab_size
        # The memory of captured graphs serves nothing else.
        return fixed + tokens * _kept_bytes(config, model, layer, _BF16_BYTES) + logits + evaluation
    fixed = _TRAINING_BYTES * parameters
    # Autocast keeps a bfloat16 copy of the weights within a step.
    fixed += _BF16_BYTES * parameters if precision == "bf16" else 0
    layer = _plain_layer_bytes(model, precision)
    rows = min(tokens, rows_at_a_time(model.vocab_size, device))
    # A chunk of logits in the computing dtype, and its log-softmax and gradient in float32.
    logits = rows * model.vocab_size * (_width(precision) + 8)
    # The residual stream is float32 also under autocast.
    activations = tokens * _kept_bytes(config, model, layer, 4)
    if device.type == "cpu":
        # Beside the copy that a checkpoint is written from, which on a GPU is in host memory: the head's
        # gradient of one chunk, what the C library's heap loses between blocks, and torch's own code.
        head = 4 * model.vocab_size * model.hidden_size
        activations = int(_HEAP_LOSS * activations)
        fixed += _CHECKPOINT_BYTES * parameters + head + _RUNTIME_BYTES
    return fixed + max(activations + logits, evaluation)


def _sharded_bytes(config: ResolvedConfig, model: ModelConfig, device: torch.device) -> int:
    """Estimate the same for one rank of a model that is divided among them."""
    groups, width = parameter_groups(model), _width(config.precision)
    root = groups["embedding"] + groups["head"]
    layer = (sum(groups.values()) - root) // model.num_layers
    # Its part of weights, gradients and moments. Embedding and head as wholes, with their gradients and what
    # is sent of these; two layers, of which one is fetched ahead, and the gradients of one.
    fixed = _TRAINING_BYTES * sum(groups.values()) // config.ranks
    fixed += root * (width + 8) + layer * (2 * width + 8)
    tokens = config.batch_size * config.seq_length
    activations = tokens * _kept_bytes(config, model, _plain_layer_bytes(model, config.precision), 4)
    rows = min(tokens, rows_at_a_time(model.vocab_size, device))
    logits = rows * model.vocab_size * (width + 8)
    if device.type == "cpu":
        activations = int(_HEAP_LOSS * activations)
        fixed += _CHECKPOINT_BYTES * sum(groups.values()) + _RUNTIME_BYTES
    return fixed + max(activations + logits, _evaluation_bytes(config, model, device, root + 2 * layer))


def _width(precision: Precision) -> int:
    return 2 if precision == "bf16" else 4


def _plain_layer_bytes(model: ModelConfig, precision: Precision) -> int:
    """Return the bytes that a layer keeps of each token for the backward pass, outside of the fast step."""
    width, hidden = _width(precision), model.hidden_size
    # Two residuals and what their norms keep, float32; the norms' outputs, the attention's and, under
    # autocast, casts of them; q, k and v; gate, up, silu and their product.
    casts = 6 if precision == "bf16" else 3
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return 16 * hidden + width * (casts * hidden + attention + 4 * model.intermediate_size)


def _kept_bytes(config: ResolvedConfig, model: ModelConfig, layer: int, width: int) -> int:
    """Return the bytes that all layers keep of each token for the backward pass.

    Args:
        config: the options of the run.
        model: the model.
        layer: the bytes that one layer keeps.
        width: bytes of an element of the residual stream.
    """
    if config.activation_checkpointing:
        # The inputs of all layers, and what the one that is computed again keeps.
        return model.num_layers * model.hidden_size * width + layer
    return model.num_layers * layer


def _evaluation_bytes(
    config: ResolvedConfig, model: ModelConfig, device: torch.device, parameters: int
) -> int:
    """Return the bytes that an evaluation takes beside the weights."""
    precision = config.precision
    # It keeps one layer at a time, and then chunks of logits: in the computing dtype, in float32, and their
    # log-softmax.
    layer = group_size(config.seq_length, device) * config.seq_length * _plain_layer_bytes(model, precision)
    logits = evaluation_rows(model.vocab_size, device) * model.vocab_size * (_width(precision) + 8)
    copies = _BF16_BYTES * parameters if precision == "bf16" else 0
    return copies + max(layer, logits)

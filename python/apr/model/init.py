"""Random initial weights, and the sizes of models to train from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.errors import RefusedError, UsageError
from apr.files import read_options
from apr.model.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from apr.model.decoder import Decoder

# Two published models, and one that two CPU cores train in a minute. The vocabulary size comes from the data
# or the tokenizer.
PRESETS: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "architecture": "qwen2", "hidden_size": 896, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "architecture": "llama", "hidden_size": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
        "intermediate_size": 1536, "max_position_embeddings": 8192, "rope_theta": 1e5, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "qwen2-4m": {
        "architecture": "qwen2", "hidden_size": 192, "num_layers": 8, "num_heads": 6, "num_kv_heads": 2,
        "intermediate_size": 512, "max_position_embeddings": 1024, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
# The vocabulary sizes of the published models.
# Qwen's tokenizer emits ids below 151,665; the published embedding has rows to spare.
VOCABULARIES = {"qwen2.5-0.5b": 151_936, "smollm2-135m": 49_152}
# transformers' `initializer_range` for both families.
_STD = 0.02


def load_arch(arch: str, vocab_size: int) -> ModelConfig:
    """Return the configuration of a preset or of a YAML file.

    Args:
        arch: the name of a preset, or the path of a YAML file with sizes under their metadata keys.
        vocab_size: the vocabulary size of the model.

    Raises:
        FileNotFoundError: `arch` is neither a preset nor a file.
        UsageError: the file is not a YAML mapping.
        RefusedError: the sizes do not describe a model, or the file has another vocabulary size.
    """
    sizes = read_arch(arch)
    stated = sizes.get("vocab_size", vocab_size)
    if stated != vocab_size:
        raise RefusedError(
            f"--arch {arch}: vocab_size is {stated}, but must be the data's vocabulary size, {vocab_size}"
        )
    try:
        return ModelConfig.from_metadata({**sizes, "vocab_size": vocab_size})
    except RefusedError as error:
        raise RefusedError(f"--arch {arch}: {error}") from None


def init_weights(model: Decoder, seed: int) -> None:
    """Fill a model with the weights of `fresh_weights`, which depend on the seed but not on the device."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in fresh_weights(model.config, seed):
            parameters[name].copy_(values)


def fresh_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the initial float32 values of each parameter. The same seed gives the same values.

    Matrices and the embedding are drawn from a normal distribution with standard deviation 0.02, or
    0.02 / sqrt(2 x layers) if they write to the residual stream, as in GPT-2. Norms scale by 1; biases are 0.
    """
    from apr.model.decoder import Decoder

    # Always on the CPU: the generator of a GPU draws other numbers from the same seed.
    generator = torch.Generator().manual_seed(seed)
    residual = _STD / (2 * config.num_layers) ** 0.5
    # Only the shapes. The caller writes or copies one tensor at a time, so that no second model is in memory.
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}
    for name, shape in shapes.items():
        if len(shape) == 1:
            # Gemma's norms multiply by 1 + weight.
            is_zero = name.endswith(".bias") or config.norm_kind == "one-plus"
            yield name, torch.full(shape, 0.0 if is_zero else 1.0)
            continue
        std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else _STD
        yield name, torch.normal(0.0, std, shape, generator=generator)


def read_arch(arch: str) -> dict[str, Any]:
    """Return the sizes of a preset or of a YAML file, under their metadata keys.

    Raises:
        FileNotFoundError: `arch` is neither a preset nor a file.
        UsageError: the file is not a YAML mapping, or it is empty.
    """
    if arch in PRESETS:
        return PRESETS[arch]
    path = Path(arch)
    if not path.exists():
        raise FileNotFoundError(2, f"neither a preset ({', '.join(PRESETS)}) nor an existing file", arch)
    sizes = read_options(path)
    if not sizes:
        raise UsageError(f"{path}: the file is empty; it must map metadata keys to sizes", path=path)
    return sizes

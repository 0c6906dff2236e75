"""Fresh weights, and the sizes of models to start from scratch."""

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

# Sizes of published models, and one that two CPU cores train in a minute. The vocabulary is the tokenizer's.
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
# Rows of the published models' embeddings.
VOCABULARIES = {"qwen2.5-0.5b": 151_936, "smollm2-135m": 49_152}
_STD = 0.02


def load_arch(arch: str, vocab_size: int) -> ModelConfig:
    """The configuration of a preset or a YAML file of metadata keys, with a vocabulary's size.

    Raises:
        FileNotFoundError: neither a preset nor a file.
        UsageError: a file that is no mapping.
        RefusedError: sizes that make no model, or another vocabulary's.
    """
    sizes = PRESETS.get(arch) or _read(arch)
    given = sizes.get("vocab_size", vocab_size)
    if given != vocab_size:
        raise RefusedError(f"--arch {arch}: vocab_size is {given}, the data's {vocab_size}: make them equal")
    try:
        return ModelConfig.from_metadata({**sizes, "vocab_size": vocab_size})
    except RefusedError as error:
        raise RefusedError(f"--arch {arch}: {error}") from None


def init_weights(model: Decoder, seed: int) -> None:
    """Fill a model with fresh weights, the same for a seed on every device; see `fresh_weights`."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in fresh_weights(model.config, seed):
            parameters[name].copy_(values)


def fresh_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names and fresh float32 values of a decoder's parameters, one at a time, the same for a seed.

    Matrices and embedding are normal with a standard deviation of 0.02, those that write to the residual
    stream 0.02 / sqrt(2 x layers) as in GPT-2; norms are 1, biases 0.
    """
    from apr.model.decoder import Decoder

    generator = torch.Generator().manual_seed(seed)
    residual = _STD / (2 * config.num_layers) ** 0.5
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, torch.full(shape, 0.0 if name.endswith(".bias") else 1.0)
            continue
        std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else _STD
        yield name, torch.normal(0.0, std, shape, generator=generator)


def _read(arch: str) -> dict[str, Any]:
    path = Path(arch)
    if not path.exists():
        raise FileNotFoundError(2, f"neither a preset ({', '.join(PRESETS)}) nor a file", arch)
    sizes = read_options(path)
    if not sizes:
        raise UsageError(f"{path}: no mapping of sizes")
    return sizes

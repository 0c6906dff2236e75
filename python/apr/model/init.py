"""Random initial weights, and the sizes of models to train from scratch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.errors import RefusedError, UsageError, about
from apr.file_format import format_of_start
from apr.files import read_options
from apr.model.config import ModelConfig, missing_keys
from apr.model.metadata import ALIASES, canonical, integer
from apr.model.names import parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from apr.container.tensor_file import TensorFile
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
# The ends of what is meant as a path and not as the name of a preset.
_SUFFIXES = {".yaml", ".yml", ".json"}
# transformers' `initializer_range` for both families.
_STD = 0.02


def load_arch(arch: str, vocab_size: int) -> ModelConfig:
    """Return the configuration of a preset or of a file of sizes.

    Args:
        arch: as for `read_arch`.
        vocab_size: the vocabulary size of the data. The model may have more rows, if the file says so:
            published models have some to spare.

    Raises:
        FileNotFoundError: `arch` is neither a preset nor a file.
        UsageError: the file is not a mapping of sizes.
        RefusedError: the sizes do not describe a model, or are too small for the vocabulary.
    """
    sizes = read_arch(arch)
    with about(arch):
        stated = canonical(sizes).get("vocab_size")
        rows = vocab_size if stated is None else integer({"vocab_size": stated}, "vocab_size")
        if rows < vocab_size:
            raise RefusedError(
                f"vocab_size is {rows}, but the data's vocabulary has {vocab_size} ids; raise it, or leave "
                "it out"
            )
        if _is_transformers(sizes):
            # The weights are drawn: how published ones were quantized does not matter.
            kept = {key: value for key, value in sizes.items() if key != "quantization_config"}
            return ModelConfig.from_hf({**kept, "vocab_size": rows})
        without = {key: value for key, value in sizes.items() if key not in ALIASES["vocab_size"]}
        whole = {**without, "vocab_size": rows}
        _check_complete(whole)
        return ModelConfig.from_metadata(whole)


def _is_transformers(sizes: Mapping[str, Any]) -> bool:
    """Whether sizes are a config.json of transformers, whose class has a default for what is missing."""
    if "architectures" in sizes or "transformers_version" in sizes:
        return True
    ours = {"architecture", "num_layers", "num_heads", "num_kv_heads"}
    return "model_type" in sizes and not ours & sizes.keys()


def _check_complete(sizes: Mapping[str, Any]) -> None:
    """Check that sizes have all keys that a model needs, and name the others that may be meant for them.

    Raises:
        RefusedError: keys are missing.
    """
    missing = missing_keys(canonical(sizes))
    if not missing:
        return
    known = {spelling for key, others in ALIASES.items() for spelling in (key, *others)}
    hints = [
        f"{key!r} is not a key; did you mean {close[0]!r}?"
        for key in map(str, sizes)
        if key not in known and (close := get_close_matches(key, missing, n=1, cutoff=0.8))
    ]
    raise RefusedError("; ".join([f"{', '.join(missing)} missing", *hints]))


def init_weights(
    model: Decoder, seed: int, assign: Callable[[Tensor, Tensor], object] = torch.Tensor.copy_
) -> None:
    """Fill a model with the weights of `fresh_weights`, which depend on the seed but not on the device.

    Args:
        model: the model.
        seed: determines the weights.
        assign: writes values to a parameter.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in fresh_weights(model.config, seed):
            assign(parameters[name], values)


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
            yield name, torch.full(shape, _initial_vector(config, name))
            continue
        std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else _STD
        yield name, torch.normal(0.0, std, shape, generator=generator)


def is_fresh(config: ModelConfig, file: TensorFile, sources: Mapping[str, str]) -> bool:
    """Whether a file's weights were never trained: all norms and biases have their initial values.

    Training changes them in the first step, whatever wrote the file and in whatever dtype. Always false for a
    family whose norms have no weights.

    Args:
        config: the configuration of the model in the file.
        file: the opened file.
        sources: the name of each parameter's tensor in it, from `apr.model.fill.match`.
    """
    vectors = [name for name, shape in parameter_shapes(config).items() if len(shape) == 1]
    return bool(vectors) and all(
        bool((file[sources[name]].float() == _initial_vector(config, name)).all()) for name in vectors
    )


def _initial_vector(config: ModelConfig, name: str) -> float:
    """Return the value that all elements of a norm or a bias start with."""
    # Gemma's norms multiply by 1 + weight.
    return 0.0 if name.endswith(".bias") or config.norm_kind == "one-plus" else 1.0


def read_arch(arch: str) -> dict[str, Any]:
    """Return the sizes of a preset or of a file, under their keys in metadata or in a config.json.

    Args:
        arch: the name of a preset, or the path of a YAML file, of transformers' config.json, or of a
            directory with one.

    Raises:
        FileNotFoundError: `arch` is neither a preset nor a file.
        UsageError: the file is not a mapping of sizes, or it is empty.
    """
    if arch in PRESETS:
        return PRESETS[arch]
    path = Path(arch)
    if path.is_dir() and (path / "config.json").exists():
        path /= "config.json"
    if not path.exists() and ("/" in arch or path.suffix in _SUFFIXES):
        raise FileNotFoundError(2, "No such file or directory", arch)
    if not path.exists():
        close = get_close_matches(arch, PRESETS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FileNotFoundError(
            2, f"neither a preset nor a file; {hint}presets are {', '.join(PRESETS)}", arch
        )
    with path.open("rb") as file:
        if format_of_start(file.read(9)) is not None:
            raise UsageError(
                f"{path}: a model, not a file of sizes; to train its weights, pass it with --init",
                path=path,
            )
    sizes = read_options(path)
    if not sizes:
        raise UsageError(f"{path}: the file is empty; it must map metadata keys to sizes", path=path)
    return sizes

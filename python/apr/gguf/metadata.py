"""The metadata of an .apr file for a GGUF model: sizes, rotary embedding, tokenizer."""

from __future__ import annotations

from math import isclose, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.errors import FormatError
from apr.gguf.reader import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, WINDOWED, GgufFile
from apr.gguf.rope_formulas import longrope_attention_factor, rotary_fraction, yarn_attention_factor
from apr.gguf.structure import read_structure

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

# Parameters of Llama 3's rope scaling, the same in all published models. llama.cpp's converter keeps the
# factors that follow from them, but not the parameters; the files of `apr` have keys for them. The largest
# factor differs between models and is read from the factors.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
LOW_FACTOR, HIGH_FACTOR = "rope.scaling.low_freq_factor", "rope.scaling.high_freq_factor"
ORIGINAL_CONTEXT, ATTENTION_FACTOR = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
# YaRN's bounds as llama.cpp has them for all of these architectures, whatever the file says.
YARN_BETAS = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
# Granite's multipliers, by GGUF's keys.
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
# The EXAONE 4 with windows, by its number of layers.
_EXAONE_WINDOWED = 64


def read_metadata(path: str | PathLike[str]) -> dict[str, object]:
    """Return the metadata that `apr convert` writes for a GGUF file.

    Raises:
        FormatError: the file is not a valid GGUF file, or its keys contradict its tensors.
        UnsupportedError: a family, a feature or a tensor that is not supported.
    """
    return model_metadata(GgufFile(path))


def read_tokenizer_metadata(path: str | PathLike[str]) -> dict[str, object]:
    """Return the metadata of the tokenizer of a GGUF file of any architecture, also of one without tensors.

    Raises:
        FormatError: the file is not a valid GGUF file.
    """
    return _tokenizer_metadata(read_structure(Path(path)).fields)


def model_metadata(file: GgufFile) -> dict[str, object]:
    """Return the metadata that `apr convert` writes for an opened GGUF file.

    Raises:
        FormatError: a key is missing or contradicts the tensors.
        UnsupportedError: a rotary embedding that is not supported.
    """
    arch, scaling = file.architecture, _rope_scaling(file)
    family = arch
    if arch == "gemma3":
        family = "gemma3_text"
    if arch == "olmo2" and _window(file):
        family = "olmo3"
    metadata: dict[str, object] = {
        "model_type": family,
        "name": file.fields.get("general.name", file.path.stem),
        # The ecosystem's writer stores these three even if they are null.
        "license": file.fields.get("general.license"),
        "data_source": None,
        "data_license": None,
        "original_format": "gguf",
        "param_count": sum(prod(tensor.shape) for tensor in file.tensors.values()),
        "architecture": family,
        "hf_model_type": family,
        "hidden_size": file.size("embedding_length"),
        "num_layers": file.size("block_count"),
        "num_heads": file.size("attention.head_count"),
        "num_kv_heads": file.kv_heads,
        "head_dim": _head_dim(file),
        "vocab_size": _vocab_size(file),
        "intermediate_size": file.size("feed_forward_length"),
        "max_position_embeddings": file.size("context_length"),
        "rope_theta": _rope_theta(file),
        "rope_type": 2,  # split halves: rows of q and k are put in transformers' order
        "rms_norm_eps": _shortest(file.number("attention.layer_norm_rms_epsilon")),
        # GGUF has no key for it: a tied model has no output.weight.
        "tie_word_embeddings": "lm_head.weight" not in file.tensors,
        # Nor for this. Qwen2 does not read it: it always has biases.
        "attention_bias": any(name.endswith("q_proj.bias") for name in file.tensors),
    }
    if arch == "qwen2":
        del metadata["attention_bias"]
    if scaling is not None:
        metadata["rope_scaling"] = scaling
    return metadata | _switches(file, scaling) | _tokenizer_metadata(file.fields)


def _switches(file: GgufFile, scaling: dict[str, object] | None) -> dict[str, object]:
    """Return what only some architectures have, as transformers' config.json spells it."""
    arch, layers = file.architecture, file.size("block_count")
    result: dict[str, object] = {}
    if arch in WINDOWED:
        window = _window(file)
        result["sliding_window"] = window or None
        if window:
            result["layer_types"] = _layer_types(file, layers)
        swa = "rope.freq_base_swa"
        if window and arch != "gemma3" and file.has(swa) and _shortest(file.number(swa)) != _rope_theta(file):
            file.refuse(f"{arch}.{swa} differs from {arch}.rope.freq_base, which only gemma3 supports")
    if arch == "phi3":
        # llama.cpp's converter writes 0 for a model without windows.
        result["sliding_window"] = _window(file) or None
    if arch in {"phi3", "glm4"} and file.has("rope.dimension_count"):
        result["partial_rotary_factor"] = rotary_fraction(file.size("rope.dimension_count"), _head_dim(file))
    if arch == "smollm3":
        # llama.cpp has it in its code, and not in the file.
        result["no_rope_layers"] = [int((index + 1) % 4 != 0) for index in range(layers)]
    if arch in {"gemma2", "gemma3"}:
        # In llama.cpp's code too: the largest model scales by the width of the hidden state.
        largest = layers == {"gemma2": 46, "gemma3": 62}[arch]
        hidden, heads = file.size("embedding_length"), file.size("attention.head_count")
        result["query_pre_attn_scalar"] = hidden // heads if largest else _head_dim(file)
        result["hidden_activation"] = "gelu_pytorch_tanh"
    if arch == "gemma2":
        for key, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
            result[key] = _shortest(file.number(key)) if file.has(key) else default
    if arch == "granite":
        for key, name in _GRANITE.items():
            result[name] = _shortest(file.number(key)) if file.has(key) else 1.0
        if not file.has("attention.scale"):
            result["attention_multiplier"] = _head_dim(file) ** -0.5
    if arch in {"gemma3", "olmo2"} and _window(file):
        theta = _rope_theta(file)
        local = 10000.0 if arch == "gemma3" else theta
        if arch == "gemma3" and file.has("rope.freq_base_swa"):
            local = _shortest(file.number("rope.freq_base_swa"))
        result["rope_parameters"] = {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        }
        if arch == "gemma3":
            result["rope_local_base_freq"] = local
    original = "original_max_position_embeddings"
    if arch == "phi3" and scaling is not None and original in scaling:
        result[original] = scaling[original]  # where transformers looks for Phi-3's
    return result


def _window(file: GgufFile) -> int:
    """Return the size of the sliding windows; 0 without windows."""
    # llama.cpp's code for EXAONE 4 goes by the number of layers and has a default; for Gemma 2 too.
    if file.architecture == "exaone4" and file.size("block_count") != _EXAONE_WINDOWED:
        return 0
    if not file.has("attention.sliding_window"):
        return 4096 if file.architecture in {"exaone4", "gemma2"} else 0
    return int(file.number("attention.sliding_window"))


def _layer_types(file: GgufFile, layers: int) -> list[str]:
    """Return the type of each layer, as transformers names them."""
    stated = file.fields.get(f"{file.architecture}.attention.sliding_window_pattern")
    if isinstance(stated, list):
        if len(stated) < layers:
            raise FormatError(
                f"{file.path}: {file.architecture}.attention.sliding_window_pattern has {len(stated)} "
                f"entries for {layers} layers",
                path=file.path,
            )
        sliding = [bool(flag) for flag in stated[:layers]]
    else:
        period = file.size("attention.sliding_window_pattern") if stated else WINDOWED[file.architecture]
        sliding = [(index + 1) % period != 0 for index in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in sliding]


def _vocab_size(file: GgufFile) -> int:
    # The key vocab_size is optional in GGUF; the rows of the embedding decide.
    embedding = file.tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise FormatError(f"{file.path}: token_embd.weight is missing", path=file.path)
    rows = embedding.shape[0]
    if file.has("vocab_size") and file.size("vocab_size") != rows:
        raise FormatError(
            f"{file.path}: {file.architecture}.vocab_size is {file.size('vocab_size')}, but "
            f"token_embd.weight has {rows} rows",
            path=file.path,
            tensor="token_embd.weight",
        )
    return rows


def _head_dim(file: GgufFile) -> int:
    # GGUF's rule: without the key, it is embedding_length / head_count.
    if file.has("attention.key_length"):
        head_dim = file.size("attention.key_length")
    else:
        head_dim = file.size("embedding_length") // file.size("attention.head_count")
    partial = file.architecture in {"phi3", "glm4"}
    for key in ("attention.value_length", *(() if partial else ("rope.dimension_count",))):
        if file.has(key) and file.size(key) != head_dim:
            file.refuse(
                f"{file.architecture}.{key} is {file.size(key)}, but heads have {head_dim} dimensions: "
                "partial rotary embeddings are not supported"
            )
    return head_dim


def _rope_theta(file: GgufFile) -> float:
    # GGUF's rule: without the key, it is 10000.
    return _shortest(file.number("rope.freq_base")) if file.has("rope.freq_base") else 10000.0


def _rope_scaling(file: GgufFile) -> dict[str, object] | None:
    """Return the scaling of rotary frequencies as transformers spells it, or None."""
    if ROPE_FACTORS in file.rope_factors:
        return _llama3_scaling(file)
    kind = file.fields.get(f"{file.architecture}.rope.scaling.type", "linear")
    if LONG_FACTORS in file.rope_factors or kind == "longrope":
        return _longrope_scaling(file)
    # Files from before the type had a key have the factor alone, under either name; it is linear, as in
    # llama.cpp. The newer name wins, even with a 0, which counts as 1.
    key = "rope.scaling.factor" if file.has("rope.scaling.factor") else "rope.scale_linear"
    factor = _shortest(file.number(key)) if file.has(key) else 1.0
    if kind == "none" or factor in {0.0, 1.0}:
        _refuse_attention_factor(file)
        return None
    if kind == "linear":
        _refuse_attention_factor(file)
        return {"rope_type": "linear", "factor": factor}
    scaling: dict[str, object] = {"rope_type": "yarn", "factor": factor}
    scaling["original_max_position_embeddings"] = (
        file.size(ORIGINAL_CONTEXT) if file.has(ORIGINAL_CONTEXT) else file.size("context_length")
    )
    for key, default in YARN_BETAS.items():
        if file.has(key) and file.number(key) != default:
            file.refuse(
                f"{file.architecture}.{key} is {_shortest(file.number(key))}, which is not supported: "
                f"llama.cpp skips the key for this architecture, and computes with {default}"
            )
    if file.has(ATTENTION_FACTOR):
        own = yarn_attention_factor(factor)
        scaling["attention_factor"] = _shortest(file.number(ATTENTION_FACTOR) * own)
    return scaling


def _refuse_attention_factor(file: GgufFile) -> None:
    """Refuse a factor of cosines and sines where transformers has none: llama.cpp multiplies by it."""
    if file.has(ATTENTION_FACTOR) and file.number(ATTENTION_FACTOR) != 1:
        file.refuse(
            f"{file.architecture}.{ATTENTION_FACTOR} is {_shortest(file.number(ATTENTION_FACTOR))}, which is "
            "supported only with YaRN and LongRoPE"
        )


def _refuse_factor(file: GgufFile, tensor: str) -> None:
    """Refuse a factor beside the factors in a tensor: llama.cpp divides by both."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if file.has(key) and file.number(key) not in {0, 1}:
            file.refuse(
                f"{file.architecture}.{key} is {_shortest(file.number(key))} beside {tensor}, which is not "
                "supported",
                tensor,
            )


def _longrope_scaling(file: GgufFile) -> dict[str, object]:
    """Return LongRoPE's scaling from its two tensors."""
    _refuse_factor(file, LONG_FACTORS)
    factors = {}
    for key, name in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)):
        stored = file.rope_factors.get(name)
        if stored is None or stored.source.tensor_type.name != "F32":
            file.refuse(f"LongRoPE needs the tensor {name} in F32", name)
        factors[key] = [_shortest(value) for value in stored.values(0, prod(stored.shape)).tolist()]
    scaling: dict[str, object] = {"rope_type": "longrope", **factors}
    context = file.size("context_length")
    original = file.size(ORIGINAL_CONTEXT) if file.has(ORIGINAL_CONTEXT) else context
    scaling["original_max_position_embeddings"] = original
    # llama.cpp's default, where transformers has a formula of its own.
    attention = file.number(ATTENTION_FACTOR) if file.has(ATTENTION_FACTOR) else 1.0
    # The formula gives more digits than GGUF has.
    if not isclose(attention, longrope_attention_factor(context / original, original), rel_tol=1e-6):
        scaling["attention_factor"] = _shortest(attention)
    return scaling


def _llama3_scaling(file: GgufFile) -> dict[str, object]:
    """Return Llama 3's scaling if the factors in the file follow from its parameters."""
    _refuse_factor(file, ROPE_FACTORS)
    _refuse_attention_factor(file)
    stored = file.rope_factors[ROPE_FACTORS]
    factors: NDArray[Any] = np.zeros(0)
    if stored.source.tensor_type.name == "F32":
        factors = stored.values(0, prod(stored.shape))
    factor, head_dim = float(factors.max(initial=0.0)), _head_dim(file)
    low = _shortest(file.number(LOW_FACTOR)) if file.has(LOW_FACTOR) else _LLAMA3_LOW
    high = _shortest(file.number(HIGH_FACTOR)) if file.has(HIGH_FACTOR) else _LLAMA3_HIGH
    context = file.size(ORIGINAL_CONTEXT) if file.has(ORIGINAL_CONTEXT) else _LLAMA3_CONTEXT
    if not (
        1 < factor < float("inf")
        and 0 < low < high
        and len(factors) == head_dim // 2
        # room for the rounding of float32 in the converters
        and np.allclose(
            factors,
            llama3_factors(_rope_theta(file), head_dim, factor, low, high, context),
            rtol=1e-5,
            atol=0,
        )
    ):
        file.refuse(
            f"the factors in {ROPE_FACTORS} do not match a supported rope scaling (only llama3 is)",
            ROPE_FACTORS,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float, high: float, context: int
) -> NDArray[np.float32]:
    """Return Llama 3's divisors of the rotary frequencies: [head_dim / 2] (https://arxiv.org/abs/2407.21783).

    Args:
        theta: the base of the frequencies.
        head_dim: the number of values that are rotated in a head.
        factor: the divisor of frequencies that turn less than `low` times within `context` positions.
        low: the number of turns up to which the divisor is `factor`.
        high: the number of turns from which it is 1. In between, it is interpolated.
        context: the number of positions that the model was first trained with.
    """
    # A hostile theta may overflow. The result is then only compared, so that it may be anything.
    with np.errstate(all="ignore"):
        wavelengths = (
            2 * np.pi * np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        )
        smooth = (context / wavelengths - low) / (high - low)
        factors = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors[wavelengths < context / high] = 1
    factors[wavelengths > context / low] = factor
    return factors.astype(np.float32)


def _shortest(value: float) -> float:
    # GGUF stores float32: 1e-05 would become 9.999999747378752e-06.
    return float(str(np.float32(value)))


def _tokenizer_metadata(fields: dict[str, Any]) -> dict[str, object]:
    """Return GGUF's tokenizer keys under the names that .apr files have."""
    renamed = {"tokens": "vocabulary", "pre": "pre_type"}
    prefix = "tokenizer.ggml."
    metadata: dict[str, object] = {}
    for key, value in fields.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            metadata[f"tokenizer.{renamed.get(name, name)}"] = value
    vocabulary = metadata.get("tokenizer.vocabulary")
    if isinstance(vocabulary, list):
        metadata["tokenizer.vocab_size"] = len(vocabulary)
    if "tokenizer.chat_template" in fields:
        metadata["chat_template"] = fields["tokenizer.chat_template"]
    return metadata

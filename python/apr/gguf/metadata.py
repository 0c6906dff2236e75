"""The metadata of an .apr file for a GGUF model: sizes, rotary embedding, tokenizer."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.errors import FormatError
from apr.gguf.names import FAMILIES
from apr.gguf.reader import ROPE_FACTORS, GgufFile

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

# Parameters of Llama 3's rope scaling, the same in all published models. GGUF keeps the factors that follow
# from them, but not the parameters. The largest factor differs between models and is read from the file.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1, 4, 8192


def read_metadata(path: str | PathLike[str]) -> dict[str, object]:
    """Return the metadata that `apr convert` writes for a GGUF file.

    Raises:
        FormatError: the file is not a valid GGUF file, or its keys contradict its tensors.
        UnsupportedError: a family, a feature or a tensor that a Llama or Qwen2 decoder does not have.
    """
    return model_metadata(GgufFile(path))


def model_metadata(file: GgufFile) -> dict[str, object]:
    """Return the metadata that `apr convert` writes for an opened GGUF file.

    Raises:
        FormatError: a key is missing or contradicts the tensors.
        UnsupportedError: a rotary embedding that is not supported.
    """
    arch, scaling = file.architecture, _rope_scaling(file)
    metadata: dict[str, object] = {
        "model_type": arch,
        "name": file.fields.get("general.name", file.path.stem),
        # The ecosystem's writer stores these three even if they are null.
        "license": file.fields.get("general.license"),
        "data_source": None,
        "data_license": None,
        "original_format": "gguf",
        "param_count": sum(prod(tensor.shape) for tensor in file.tensors.values()),
        "architecture": arch,
        "hf_architecture": FAMILIES[arch],
        "hf_model_type": arch,
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
    }
    if scaling is not None:
        metadata["rope_scaling"] = scaling
    if arch == "llama":  # GGUF has no key for it
        metadata["attention_bias"] = any(name.endswith("q_proj.bias") for name in file.tensors)
    return metadata | _tokenizer_metadata(file.fields)


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
    for key in ("attention.value_length", "rope.dimension_count"):
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
    """Return Llama 3's rope scaling if the factors in the file follow from its published parameters."""
    stored = file.rope_factors
    if stored is None:
        return None
    factors: NDArray[Any] = np.zeros(0)
    if stored.source.tensor_type.name == "F32":
        factors = stored.values(0, prod(stored.shape))
    factor, head_dim = float(factors.max(initial=0.0)), _head_dim(file)
    if not (
        1 < factor < float("inf")
        and len(factors) == head_dim // 2
        # room for the rounding of float32 in the converters
        and np.allclose(factors, _llama3_factors(_rope_theta(file), head_dim, factor), rtol=1e-5, atol=0)
    ):
        file.refuse(
            f"the factors in {ROPE_FACTORS} do not match a supported rope scaling (only llama3 is)",
            ROPE_FACTORS,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": float(_LLAMA3_LOW),
        "high_freq_factor": float(_LLAMA3_HIGH),
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def _llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float32]:
    """Return the divisors of the rotary frequencies (https://arxiv.org/abs/2407.21783)."""
    # A hostile theta may overflow. The result is only compared, so that it may be anything.
    with np.errstate(all="ignore"):
        wavelengths = (
            2 * np.pi * np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        )
        smooth = (_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
        factors = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors[wavelengths < _LLAMA3_CONTEXT / _LLAMA3_HIGH] = 1
    factors[wavelengths > _LLAMA3_CONTEXT / _LLAMA3_LOW] = factor
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

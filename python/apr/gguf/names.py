"""Tensor names of GGUF and of transformers, and the order of rows in which the two formats differ."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# GGUF's `general.architecture` of the families that are supported. A file of Mistral is a llama, and one of
# OLMo 3 an olmo2 with sliding windows.
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "smollm3", "olmo2", "gemma2", "gemma3", "granite", "phi3", "exaone4", "glm4",
)  # fmt: skip
# Architectures that llama.cpp rotates in adjacent pairs of values, transformers in the two halves of a head.
# The rows of q and k change their order between the two, in both directions. GLM-4 is not among them:
# transformers rotates its pairs too.
PERMUTED = frozenset({"llama", "smollm3", "granite"})
# Architectures whose norms transformers multiplies by 1 + weight. GGUF files hold the sum.
ONE_PLUS = frozenset({"gemma2", "gemma3"})
# Architectures for which llama.cpp needs the head as a tensor, even if it is tied to the embedding.
STORED_HEADS = frozenset({"olmo2"})

# transformers' names of special tokens, and GGUF's, which its keys for their ids begin with:
# `tokenizer.ggml.bos_token_id`.
SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "sep_token": "seperator",  # GGUF's own spelling
    "cls_token": "cls",
    "mask_token": "mask",
}

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    # The norm before the MLP, which transformers names after what precedes it.
    "ffn_norm": "post_attention_layernorm",
}
_NORMS_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED_MLP = {"ffn_up": "mlp.gate_up_proj"}
# Where an architecture differs from _BLOCK_NAMES.
_OTHER_NAMES: dict[str, dict[str, str]] = {
    "olmo2": _NORMS_AFTER,
    "exaone4": _NORMS_AFTER,
    "gemma2": {**_NORMS_AFTER, "ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {**_NORMS_AFTER, "ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", **_FUSED_MLP},
    "glm4": {
        "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
        **_FUSED_MLP,
    },
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


def hf_name(name: str, architecture: str = "llama") -> str | None:
    """Return the transformers name of a GGUF tensor, or None if the architecture has no such tensor."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _BLOCK.fullmatch(name)
    part = None if match is None else _block_names(architecture).get(match[2])
    return None if match is None or part is None else f"model.layers.{match[1]}.{part}.{match[3]}"


def gguf_name(name: str, architecture: str = "llama") -> str | None:
    """Return the GGUF name of a transformers tensor, or None if the architecture has no such tensor."""
    for theirs, ours in _TOP_NAMES.items():
        if name == ours:
            return theirs
    match = _LAYER.fullmatch(name)
    for theirs, ours in _block_names(architecture).items():
        if match is not None and match[2] == ours:
            return f"blk.{match[1]}.{theirs}.{match[3]}"
    return None


@cache
def _block_names(architecture: str) -> dict[str, str]:
    other = _OTHER_NAMES.get(architecture, {})
    # One transformers name for each of GGUF's: norms after a branch replace those before it.
    kept = {theirs: ours for theirs, ours in _BLOCK_NAMES.items() if ours not in other.values()}
    return kept | other


def permute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Put the rows of a q or k projection in the order of adjacent pairs, the inverse of `unpermute`.

    Args:
        rows: [heads * head_dim, ...] in transformers' order.
        heads: the number of attention heads for q, of KV heads for k.

    Returns:
        A new array of the same shape; row (h, 2i + j) holds row (h, j * head_dim/2 + i) of `rows`.
    """
    head_dim = rows.shape[0] // heads
    halves = rows.reshape(heads, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def unpermute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo the row order that GGUF converters give the q and k projections of Llama.

    GGUF rotates adjacent pairs of values, transformers rotates the two halves of a head.

    Args:
        rows: [heads * head_dim, ...]; row (h, 2i + j) holds transformers' row (h, j * head_dim/2 + i).
        heads: the number of attention heads for q, of KV heads for k.

    Returns:
        A new array of the same shape with the rows in transformers' order.
    """
    head_dim = rows.shape[0] // heads
    pairs = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

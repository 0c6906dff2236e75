"""Tensor names of GGUF and of transformers, and the order of rows in which the two formats differ."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# GGUF `general.architecture`: transformers' class
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

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
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    # The norm before the MLP, which transformers names after what precedes it.
    "ffn_norm": "post_attention_layernorm",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def hf_name(name: str) -> str | None:
    """Return the transformers name of a GGUF tensor, or None if neither family has such a tensor."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _BLOCK_NAMES:
        return None
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"


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

"""The peer of the training benchmarks: transformers' model with our weights, and the fastest attention.

On torch before 2.14, transformers passes an explicit causal mask and repeats the heads of keys and values
while it is compiled: attention then takes 21.5 ms of a step of Qwen2.5-0.5B at 16 x 1024 instead of 9.3. Here
it gets an attention function without a mask and with grouped queries, as its newer versions use on newer
versions of torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from apr.model.decoder import Decoder

CAUSAL = "causal_without_mask"


def causal_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,  # noqa: ANN401 (transformers passes what other attentions need)
) -> tuple[torch.Tensor, None]:
    """Map [B, heads, T, head_dim] to [B, T, heads, head_dim], as transformers wants it."""
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).contiguous(), None


def no_mask(*_: Any, **__: Any) -> None:  # noqa: ANN401
    """Return no mask: windows are full, and `causal_attention` needs none."""


AttentionInterface.register(CAUSAL, causal_attention)
AttentionMaskInterface.register(CAUSAL, no_mask)


def attention_kernels() -> AbstractContextManager[None]:
    """Prefer cuDNN's attention on a GPU, then flash attention."""
    if not torch.cuda.is_available():
        return nullcontext()
    return sdpa_kernel(
        [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ],
        set_priority=True,
    )


def transformers_model(ours: Decoder) -> PreTrainedModel:
    """Return a trainable Qwen2ForCausalLM or LlamaForCausalLM of the same configuration on the same device.

    Every parameter is a copy of ours. A tied head stays tied.
    """
    config = ours.config
    (rope,) = {layer.rope for layer in config.layers}
    assert rope is not None, "the presets have rotary positions"
    assert rope.scaling is None, "the presets have no rope scaling"
    kind, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        config.family
    ]
    theirs = model(
        kind(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": rope.theta},
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            attn_implementation=CAUSAL,
        )
    ).to(ours.head_weight.device)
    loaded = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.missing_keys == ["lm_head.weight"] * config.tie_word_embeddings, loaded
    assert not loaded.unexpected_keys, loaded
    return theirs.train()

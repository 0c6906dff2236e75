"""The peer of the training benchmarks: transformers' model with our weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from apr.model.decoder import Decoder


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
            attn_implementation="sdpa",
        )
    ).to(ours.head_weight.device)
    loaded = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.missing_keys == ["lm_head.weight"] * config.tie_word_embeddings, loaded
    assert not loaded.unexpected_keys, loaded
    return theirs.train()

"""A tiny random model of each family, as transformers makes it."""

from __future__ import annotations

from typing import Any

from apr.model.families import FAMILIES

VOCABULARY = 97

# Every switch of a family is on: short windows, heads wider than hidden / heads, biases, scaling.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 56,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": None,  # transformers gives the embedding of the padding no gradient
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_UPPER = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "head_dim": 20}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6],
    "long_factor": [1.0, 1.7, 2.9, 4.5, 6.0],
    "original_max_position_embeddings": 16,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 20, "attention_bias": True},
    "qwen2": _UPPER,
    "qwen3": {**_UPPER, "attention_bias": True, "tie_word_embeddings": True},
    "mistral": {"head_dim": 20, "sliding_window": 8},
    "smollm3": {"use_sliding_window": True, "sliding_window": 8, "attention_bias": True, "head_dim": 20},
    "olmo2": {"attention_bias": True, "head_dim": 20},
    "olmo3": {
        "head_dim": 20,
        "sliding_window": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "gemma2": {"head_dim": 20, "sliding_window": 8, "query_pre_attn_scalar": 17, "attention_bias": True},
    "gemma3_text": {
        "head_dim": 20,
        "sliding_window": 8,
        "query_pre_attn_scalar": 17,
        "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "granite": {
        "head_dim": 20,
        "embedding_multiplier": 3.7,
        "attention_multiplier": 0.11,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.3,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "phi3": {  # transformers computes the size of its factors from hidden / heads
        "sliding_window": 24,
        "original_max_position_embeddings": 16,
        "partial_rotary_factor": 0.75,
        "rope_parameters": {**_LONGROPE, "partial_rotary_factor": 0.75},
    },
    "exaone4": {
        "head_dim": 20,
        "sliding_window": 8,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.5,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 32,
        },
    },
    "glm4": {"head_dim": 20},
}  # fmt: skip
assert SWITCHES.keys() == FAMILIES.keys()


def transformers_config(family: str, **changes: Any):
    """Return transformers' configuration of the model."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **_SIZES | SWITCHES[family] | changes)


def transformers_model(family: str, *, seed: int = 7, **changes: Any):
    """Return transformers' float32 model in training mode. Norms and biases are not their initial values."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = transformers_config(family, **changes)
    # No fused attention has a softcap, and transformers' own one leaves it out.
    how = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def as_ours(config, values):
    """Return transformers' tensors by name with fused projections split, and without a tied head."""
    from apr.model.names import fused_parts

    result = {name: value for name, value in values.items() if name != "lm_head.weight"}
    if not config.tie_word_embeddings and "lm_head.weight" in values:
        result["lm_head.weight"] = values["lm_head.weight"]
    for fused, parts in fused_parts(config).items():
        if fused in result:
            result |= zip(parts, result.pop(fused).split(list(parts.values())), strict=True)
    return result


def ours(theirs):
    """Return our decoder with the configuration and the weights of transformers' model."""
    from apr.model import Decoder, ModelConfig

    model = Decoder(ModelConfig.from_hf(theirs.config.to_dict()))
    model.load_state_dict(as_ours(model.config, theirs.state_dict()), strict=True)
    return model

"""Parameters by name are those that the decoder and transformers have."""

import pytest
import torch

from apr.model import Decoder, ModelConfig
from apr.model.names import parameter_shapes

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"head_dim": 10}, {"attention_bias": True}])
def test_names_and_shapes_are_the_decoders_and_transformers(family, tied, more):
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = {**SIZES, **more, "hf_model_type": family, "tie_word_embeddings": tied}
    config = ModelConfig.from_metadata(facts)
    shapes = parameter_shapes(config)
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
        names = {
            "num_layers": "num_hidden_layers",
            "num_heads": "num_attention_heads",
            "num_kv_heads": "num_key_value_heads",
        }
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                family,
                **{names.get(key, key): value for key, value in facts.items() if key != "hf_model_type"},
            )
        )
    assert shapes == ours
    if not (
        family == "qwen2" and "head_dim" in more
    ):  # transformers' Qwen2 has no such switch in every version
        assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters()}

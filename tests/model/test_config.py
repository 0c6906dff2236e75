"""The architecture comes from the metadata: every spelling, no silent default."""

import pytest
from tests.model import tiny

from apr.errors import RefusedError
from apr.model import ModelConfig
from apr.model.families import FAMILIES

LLAMA = {
    "architecture": "llama",
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "vocab_size": 512,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def config(**changes):
    facts = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    return ModelConfig.from_metadata(facts)


def refused(**changes):
    from apr.errors import RefusedError

    with pytest.raises(RefusedError) as error:
        config(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", [key for key in LLAMA if key != "architecture"])
def test_a_missing_size_is_refused_by_name(key):
    assert key in refused(**{key: None})


def test_all_spellings_are_read():
    spelt = {
        "hf_model_type": "llama",
        "d_model": 64,
        "n_layer": 2,
        "num_attention_heads": 4,
        "n_kv_heads": 2,
        "n_vocab": 512,
        "ffn_dim": 160,
        "n_ctx": 256,
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
        "norm_eps": 1e-5,
        "tied_embeddings": True,
    }
    assert ModelConfig.from_metadata(spelt) == config()


def test_contradicting_spellings_are_refused_with_both_names():
    text = refused(n_layer=3)
    assert "num_layers" in text
    assert "n_layer" in text
    assert "model.vocab_size" in refused(**{"model.vocab_size": 9})
    assert "rope_parameters.rope_theta" in refused(rope_parameters={"rope_theta": 5.0})


def test_a_value_rounded_to_float32_is_not_a_contradiction():
    assert config(**{"model.rms_norm_eps": 9.999999747378752e-06}).rms_norm_eps == 1e-5


def test_the_model_type_of_transformers_takes_precedence():
    assert config(architecture="LlamaForCausalLM", hf_model_type="qwen2").family == "qwen2"
    assert config(architecture="llama", hf_architecture="Qwen2ForCausalLM").family == "qwen2"
    assert config(architecture="LlamaForCausalLM").family == "llama"


@pytest.mark.parametrize("name", ["bert", "BertModel", "roberta", "T5ForConditionalGeneration"])
def test_encoders_are_refused_by_name(name):
    text = refused(hf_architecture=name)
    assert repr(name) in text
    assert "encoder" in text


def test_other_decoders_and_no_architecture_are_refused():
    assert "'mamba2'" in refused(hf_model_type="mamba2")
    assert "architecture" in refused(architecture=None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True, "sliding_window": 128}, "sliding-window"),
        ({"sliding_window": 128}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_experts": 8}, "num_experts"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 4.0}}, "mrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "default", "type": "linear"}}, "'linear'"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_type"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "llama3"}},
            "rope_scaling.rope_type",
        ),
    ],
)
def test_unsupported_features_are_refused_by_name(changes, name):
    assert name in refused(**changes)


def test_qwen2_with_an_unused_sliding_window_is_accepted():
    assert config(hf_model_type="qwen2", sliding_window=32768, use_sliding_window=False).qkv_bias


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 0},
        {"num_layers": True},
        {"hidden_size": 64.0},
        {"num_kv_heads": 3},
        {"num_heads": 5},
        {"head_dim": 15},
        {"rope_theta": 0.0},
        {"rms_norm_eps": "1e-5"},
        {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)
def test_invalid_sizes_are_refused(changes):
    refused(**changes)


def test_an_unstated_tie_follows_from_the_head():
    facts = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    assert ModelConfig.from_metadata(facts, head_present=False).tie_word_embeddings
    assert not ModelConfig.from_metadata(facts, head_present=True).tie_word_embeddings


def test_metadata_round_trip():
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for made in (
        config(),
        config(hf_model_type="qwen2"),
        config(attention_bias=True, head_dim=32, rope_scaling=llama3),
    ):
        assert ModelConfig.from_metadata(made.to_metadata()) == made


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_config_json_lacks_have_the_defaults_of_transformers_class(family):
    """Each key alone, and all of them."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = CONFIG_MAPPING[family]
    full = tiny.transformers_config(family).to_dict()
    compared = 0
    for missing in [*({key} for key in full if key != "model_type"), full.keys() - {"model_type"}]:
        config = {key: value for key, value in full.items() if key not in missing}
        try:
            filled = own.from_dict(dict(config)).to_dict()
            expected = ModelConfig.from_hf(filled)
        except (StrictDataclassError, RefusedError):  # the default does not fit the other sizes
            continue
        assert ModelConfig.from_hf(config) == expected, missing
        compared += 1
    assert compared > 15


def test_swish_is_silu():
    config = tiny.transformers_config("llama").to_dict()
    assert ModelConfig.from_hf(config | {"hidden_act": "swish"}) == ModelConfig.from_hf(config)


def test_a_part_of_a_head_is_not_rounded_away():
    """44 * (30 / 44) is less than 30."""
    sizes = {"partial_rotary_factor": 0.69, "head_dim": 44, "rope_parameters": None}
    config = ModelConfig.from_hf(tiny.transformers_config("glm4").to_dict() | sizes)
    assert config.layers[0].rope.dim == 30
    metadata = config.to_metadata()
    assert int(44 * metadata["partial_rotary_factor"]) == 30
    assert ModelConfig.from_metadata(metadata) == config

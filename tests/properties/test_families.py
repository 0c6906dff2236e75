"""Any value in a configuration gives a model that computes, or one refusal."""

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.tiny import SWITCHES, VOCABULARY

from apr.errors import RefusedError
from apr.model import Decoder, ModelConfig
from apr.model.families import FAMILIES

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["sliding_attention", "yarn", "dynamic", "longrope", 10**400]),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "sliding_attention"]), inner
    ),
    max_leaves=4,
)  # fmt: skip
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}


@cache
def metadata(family):
    changes = {key: value for key, value in SWITCHES[family].items() if "rope" not in key}
    return ModelConfig.from_hf({"model_type": family} | changes | SIZES).to_metadata()


@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
@settings(max_examples=300, deadline=None)
def test_one_odd_value_is_a_model_or_a_refusal(family, data):
    import torch

    facts = dict(metadata(family))
    keys = sorted({*facts, "layer_types", "rope_scaling", "rope_parameters", "sliding_window_pattern",
                   "no_rope_layers", "original_max_position_embeddings", "rope_theta"})  # fmt: skip
    key = data.draw(st.sampled_from(keys))
    facts[key] = data.draw(VALUES)
    if key == "rope_scaling" and isinstance(facts[key], dict):
        facts[key] = {"factor": 2.0, "rope_type": data.draw(VALUES)} | facts[key]
    read = data.draw(st.sampled_from([ModelConfig.from_metadata, ModelConfig.from_hf]))
    try:
        config = read(facts, head_present=True)
    except RefusedError as error:
        assert "\n" not in str(error)
        return
    assert ModelConfig.from_metadata(config.to_metadata()) == config
    if max(config.hidden_size, config.head_dim, config.num_layers, config.vocab_size) > 512:
        return
    torch.manual_seed(0)
    with torch.no_grad():
        logits = Decoder(config)(torch.zeros(1, 70, dtype=torch.int64))
    assert logits.shape == (1, 70, config.vocab_size)

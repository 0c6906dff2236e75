"""Any metadata at all are shown, make a model, or are refused in one line."""

import json

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from tests.container.forged import Entry, forge

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert
from apr.data.tokenizers import load_tokenizer
from apr.errors import AprError, RefusedError
from apr.model import ModelConfig
from apr.model.names import parameter_shapes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**300, 0.0, 1e308, "llama", "qwen2", "LlamaForCausalLM"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# What commands and models look at, under all its spellings.
KNOWN = """
model_type name architecture hf_architecture hf_model_type hidden_size hidden_dim d_model num_layers
n_layer num_heads num_attention_heads num_kv_heads vocab_size intermediate_size head_dim rope_theta rope_type
rope_scaling rope_parameters rms_norm_eps max_position_embeddings tie_word_embeddings tied_embeddings
attention_bias hidden_act num_experts sharding quantization license tokenizer.vocabulary tokenizer.merges
tokenizer.model_type tokenizer.pre_type tokenizer.eos_token_id chat_template special_tokens param_count dtype
torch_dtype created_at total_size""".split()
METADATA = st.dictionaries(st.sampled_from(KNOWN) | TEXT, JSON, max_size=12)


@given(METADATA)
@example({"architecture": [1], "num_layers": {"a": 1}, "vocab_size": 10**300, "sharding": "x"})
def test_commands_accept_any_metadata(tmp_path, metadata):
    path = tmp_path / "m.apr"
    path.write_bytes(forge(Entry(), metadata=json.dumps(metadata).encode()))
    assert json.dumps(apr.load(path).metadata) == json.dumps(metadata)
    for flags in ([], ["--json"]):
        assert main(["inspect", *flags, str(path)]) == 0
        assert main(["tensors", *flags, str(path)]) == 0
    assert main(["diff", str(path), str(path)]) == 0
    assert main(["stamp", str(path), "name=x", "-o", str(tmp_path / "out.apr")]) == 0


COMPLETE = {
    "hf_model_type": "llama",
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "vocab_size": 16,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-5,
}


@given(METADATA, st.sets(st.sampled_from(sorted(COMPLETE))))
def test_any_metadata_make_a_config_or_a_one_line_error(metadata, kept):
    whole = {key: COMPLETE[key] for key in sorted(kept)} | metadata
    try:
        ModelConfig.from_metadata(whole)
    except (AprError, RefusedError) as error:
        assert len(str(error).splitlines()) == 1


@given(st.dictionaries(st.sampled_from(sorted(COMPLETE)) | st.sampled_from(KNOWN), JSON, max_size=2))
def test_one_odd_value_makes_a_config_or_a_one_line_error(wrong):
    try:
        config = ModelConfig.from_metadata(COMPLETE | wrong)
    except (AprError, RefusedError) as error:
        assert len(str(error).splitlines()) == 1
        return
    assert ModelConfig.from_metadata(config.to_metadata()) == config


TOKENIZER = {
    "tokenizer.vocabulary": [chr(ord("a") + n) for n in range(14)] + ["ab", "<|endoftext|>"],
    "tokenizer.merges": ["a b"],
    "tokenizer.token_type": [1] * 15 + [3],
    "tokenizer.model_type": "BPE",
    "tokenizer.pre_type": "gpt-2",
    "tokenizer.bos_token_id": 15,
    "tokenizer.eos_token_id": 15,
    "chat_template": "{{ messages }}",
}
KEPT = ["hf_tokenizer", "hf_config", "hf_generation_config"]
# What replaces a fact: anything, or a list as long as the vocabulary, or files of a tokenizer.
ODD = (
    JSON
    | st.lists(JSON, min_size=16, max_size=16)
    | st.dictionaries(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "tokenizer.model"]), JSON)
)


@given(st.dictionaries(st.sampled_from([*TOKENIZER, *KEPT, *COMPLETE]), ODD, min_size=1, max_size=2))
@example({"tokenizer.token_type": 1})
@example({"tokenizer.merges": [None]})
@example({"tokenizer.merges": [["a", 1]]})
@example({"tokenizer.vocabulary": [None] * 16})
@example({"tokenizer.pre_type": ["gpt-2"]})
@example({"tokenizer.eos_token_id": [15]})
@example({"hf_tokenizer": {"tokenizer.json": "[]"}})
@example({"hf_tokenizer": {"tokenizer.json": '{"model": {}}', "tokenizer_config.json": 3}})
def test_a_model_with_odd_metadata_converts_or_is_a_one_line_error(tmp_path, wrong):
    shapes = parameter_shapes(ModelConfig.from_metadata(COMPLETE, head_present=False))
    path = tmp_path / "m.apr"
    metadata = COMPLETE | TOKENIZER | wrong
    apr.save({name: np.zeros(shape, "<f4") for name, shape in shapes.items()}, path, metadata)
    for read in (
        lambda: convert(path, tmp_path / "hf", ConvertOptions(force=True)),
        lambda: convert(path, tmp_path / "m.safetensors"),
        lambda: load_tokenizer(path),
    ):
        try:
            read()
        except (AprError, RefusedError) as error:
            assert len(str(error).splitlines()) == 1
    convert(tmp_path / "m.safetensors", tmp_path / "back.apr")
    assert apr.load(tmp_path / "back.apr").metadata == metadata

"""Sizes, tokenizer and rotary embedding of a GGUF file are kept; what cannot be kept is refused."""

import json

import numpy as np
import pytest
from tests.gguf.models import DATA, EMBEDDING, MODELS, convert, write_gguf


@pytest.mark.parametrize("model", MODELS)
def test_sizes_and_tokenizer_are_kept(model, tmp_path):
    import apr

    convert(DATA / f"{model}.gguf", tmp_path / "m.apr")
    config = json.loads((DATA / f"hf_{model}" / "config.json").read_text())
    tokenizer = json.loads((DATA / f"hf_{model}" / "tokenizer.json").read_text())
    with apr.load(tmp_path / "m.apr") as file:
        metadata = file.metadata
    for ours, theirs in {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "vocab_size": "vocab_size",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "rms_norm_eps",
        "hf_model_type": "model_type",
        "tie_word_embeddings": "tie_word_embeddings",
    }.items():
        assert metadata[ours] == config[theirs], ours
    assert metadata["hf_architecture"] == config["architectures"][0]
    assert metadata["rope_type"] == 2
    vocabulary = tokenizer["model"]["vocab"]
    assert [vocabulary.get(token, i) for i, token in enumerate(metadata["tokenizer.vocabulary"])] == list(
        range(512)
    )
    assert [tuple(m.split(" ")) for m in metadata["tokenizer.merges"]] == [
        tuple(m) for m in tokenizer["model"]["merges"]
    ]


@pytest.mark.parametrize(
    ("architecture", "changes", "says"),
    [
        ("bert", {}, "'bert'"),
        ("llama", {"block_count": None}, "llama.block_count is missing"),
        ("llama", {"rope.scaling.type": "ntk"}, "rope scaling 'ntk'"),
        ("llama", {"expert_count": 8}, "mixture of experts"),
        ("llama", {"vocab_size": 9}, "token_embd.weight has 8 rows"),
        ("llama", {"rope.dimension_count": 32}, "partial rotary"),
        ("llama", {"tensors": [("output.weight", np.ones((8, 256), np.float32))]}, "token_embd.weight"),
        ("llama", {"tensors": [("rope_freqs.weight", np.ones(32, np.float32))]}, "rope_freqs.weight"),
        ("llama", {"tensors": [*EMBEDDING, ("blk.0.ffn_up.weight", np.ones((8, 256), np.int8))]}, "type I8"),
        ("llama", {"attention.head_count": 0}, "llama.attention.head_count"),
        ("llama", {"block_count": 1.5}, "llama.block_count"),
        ("llama", {"attention.layer_norm_rms_epsilon": float("nan")}, "nan"),
        ("llama", {"rope.freq_base": float("inf")}, "inf"),
    ],
)
def test_unsupported_models_are_refused_in_one_line(architecture, changes, says, tmp_path, capsys):
    source = write_gguf(tmp_path / "m.gguf", architecture, **changes)
    assert convert(source, tmp_path / "m.apr") == 4
    error = capsys.readouterr().err
    assert says in error
    assert str(source) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "m.apr").exists()


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_rope_factors_of_llama_3_become_rope_scaling(factor, head_dim, tmp_path):
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    import apr
    from apr.model import ModelConfig

    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_theta": 500000.0, **scaling})
    plain = 1 / 500000.0 ** (torch.arange(0, head_dim, 2) / head_dim)
    factors = (plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]).numpy()
    keys = {"rope.freq_base": 500000.0, "rope.dimension_count": head_dim, "attention.key_length": head_dim}
    source = write_gguf(
        tmp_path / "m.gguf", tensors=[*EMBEDDING, ("rope_freqs.weight", factors.astype("<f4"))], **keys
    )
    assert convert(source, tmp_path / "m.apr", "--allow-mismatch") == 0
    with apr.load(tmp_path / "m.apr") as file:
        assert list(file) == ["model.embed_tokens.weight"]
        assert file.metadata["rope_scaling"] == scaling
        assert ModelConfig.from_metadata(file.metadata).layers[0].rope.scaling.factor == factor
    factors[3] *= 1.01
    source = write_gguf(
        tmp_path / "m.gguf", tensors=[*EMBEDDING, ("rope_freqs.weight", factors.astype("<f4"))], **keys
    )
    assert convert(source, tmp_path / "m.apr") == 4


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None),
        ({"rope.scale_linear": 1.0}, None),
        ({"rope.scaling.factor": 0.0}, None),
    ],
)
def test_a_factor_without_a_type_is_linear_scaling(keys, scaling, tmp_path):
    import apr
    from apr.model import ModelConfig

    source = write_gguf(tmp_path / "m.gguf", **keys)
    assert convert(source, tmp_path / "m.apr", "--allow-mismatch") == 0
    with apr.load(tmp_path / "m.apr") as file:
        assert file.metadata.get("rope_scaling") == scaling
        read = ModelConfig.from_metadata(file.metadata).layers[0].rope.scaling
    assert (None if read is None else read.factor) == (None if scaling is None else scaling["factor"])


def test_a_list_of_windows_shorter_than_the_layers_is_refused(tmp_path, capsys):
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "olmo2")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"olmo2.{key}", 4)
    writer.add_uint32("olmo2.attention.head_count", 1)
    writer.add_float32("olmo2.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("olmo2.attention.sliding_window", 8)
    writer.add_array("olmo2.attention.sliding_window_pattern", [True, False])
    writer.add_tensor("token_embd.weight", np.ones((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert convert(tmp_path / "m.gguf", tmp_path / "m.apr") == 4
    assert "sliding_window_pattern" in capsys.readouterr().err


def test_a_model_that_cannot_be_trained_is_stored_with_a_note(tmp_path, capsys):
    source = write_gguf(tmp_path / "m.gguf", **{"attention.layer_norm_rms_epsilon": 0.0})
    assert convert(source, tmp_path / "m.apr") == 0
    assert "rms_norm_eps" in capsys.readouterr().err

"""`apr convert MODEL.apr OUT.gguf`: what apr, transformers and llama.cpp read from it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.convert.memory import memory_of_conversions
from tests.convert.models import IMPORTED, MODELS, changed, resaved, tiny

LOSSY = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


def apr_file(tmp_path, model):
    from apr.convert import convert

    return convert(IMPORTED / f"hf_{model}", tmp_path / f"{model}.apr").target


def tensors_of(path):
    import apr

    with apr.load(path) as file:
        return {name: file.numpy(name).copy() for name in file}


def config_of(path):
    import apr
    from apr.model import ModelConfig

    with apr.load(path) as file:
        return ModelConfig.from_metadata(file.metadata)


def fields_of(path):
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_is_the_same_model(model, tmp_path, run):
    source = apr_file(tmp_path, model)
    assert run("convert", source, tmp_path / "m.gguf", "--no-check")[0] == 0
    assert run("convert", tmp_path / "m.gguf", tmp_path / "back.apr")[0] == 0
    before, after = tensors_of(source), tensors_of(tmp_path / "back.apr")
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert after[name].dtype == values.dtype
        assert np.array_equal(after[name].view(np.uint8), values.view(np.uint8)), name
    assert config_of(tmp_path / "back.apr") == config_of(source)


@pytest.mark.parametrize("model", MODELS)
def test_transformers_loads_it_with_the_same_logits(model, tmp_path, run):
    import torch
    from tests.convert.models import logits, transformers_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert run("convert", apr_file(tmp_path, model), tmp_path / "m.gguf", "--no-check")[0] == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    expected = logits(transformers_model(IMPORTED / f"hf_{model}"))
    assert torch.allclose(logits(loaded.eval()), expected, atol=1e-5)
    if model.startswith("qwen2"):
        return  # transformers goes by the architecture and not by the key for the pre-tokenizer
    text = "Hello world, it's 1234!\n"
    ids = AutoTokenizer.from_pretrained(IMPORTED / f"hf_{model}")(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")(text)["input_ids"] == ids


# What transformers does not read from GGUF has its default: head sizes, Gemma's scale and windows.
GEMMA = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "rope_scaling": None,
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"head_dim": 32, "num_key_value_heads": 1, "rope_theta": 500000.0}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
        ("mistral", {"sliding_window": None}),
        ("gemma2", GEMMA),
        ("gemma3_text", {**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6}),
    ],
)
def test_transformers_loads_each_family_that_it_knows(family, changes, tmp_path, run):
    import torch
    from tests.convert.models import logits
    from transformers import AutoModelForCausalLM

    source = tiny(tmp_path, family, **changes)
    assert run("convert", source, tmp_path / "m.gguf", "--no-check")[0] == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    expected = logits(original.eval())
    assert torch.allclose(logits(theirs.eval()), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("model", ["from_gguf_llama_untied", "from_gguf_llama_tied", "from_gguf_qwen2_tied"])
def test_files_of_the_importer_keep_their_weights(model, tmp_path, run):
    import torch

    from apr.model import Decoder

    assert run("convert", IMPORTED / f"{model}.apr", tmp_path / "m.gguf", "--no-check")[0] == 0
    assert run("convert", tmp_path / "m.gguf", tmp_path / "m.apr")[0] == 0
    before = dict(Decoder.from_apr(IMPORTED / f"{model}.apr").named_parameters())
    after = dict(Decoder.from_apr(tmp_path / "m.apr").named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["f16", "bf16", *LOSSY])
def test_matrices_have_the_dtype_and_vectors_are_f32(dtype, tmp_path, run):
    import gguf
    import ml_dtypes

    source = apr_file(tmp_path, "qwen2_untied")
    assert run("convert", source, tmp_path / "m.gguf", "--dtype", dtype, "--no-check")[0] == 0
    assert run("convert", tmp_path / "m.gguf", tmp_path / "m.apr")[0] == 0
    original, written = tensors_of(source), tensors_of(tmp_path / "m.apr")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["output_norm.weight"] == kinds["blk.1.attn_q.bias"] == "F32"
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == dtype.upper()
    for name, values in original.items():
        if values.ndim == 1:
            expected = values
        elif dtype == "bf16":
            expected = values.astype(ml_dtypes.bfloat16)
        else:
            kind = gguf.GGMLQuantizationType[dtype.upper()]
            expected = gguf.dequantize(gguf.quantize(values, kind), kind)
        assert np.array_equal(written[name].astype(np.float32), expected.astype(np.float32)), name


def test_rows_that_blocks_do_not_divide_are_f16_and_a_note_names_them(tmp_path, run):
    import gguf

    source = tiny(tmp_path, intermediate_size=72)
    code, _, errors = run("convert", source, tmp_path / "m.gguf", "--dtype", "q4_0", "--no-check")
    assert code == 0
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert [name for name, kind in kinds.items() if kind == "F16"] == [
        f"blk.{layer}.ffn_down.weight" for layer in range(4)
    ]
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert "blk.0.ffn_down.weight" in errors
    assert "f16" in errors


# Windows that llama.cpp does not have: the file has a shorter context instead.
SHORTER = {"mistral, windows", "phi3, windows"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.7, 2.9, 4.5, 6.0, 7.0],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
}
CONFIGURATIONS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "llama, theta": ("llama", {"rope_theta": 500000.0}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, yarn with a factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "olmo2, tied": ("olmo2", {"tie_word_embeddings": True}),
    "olmo3": ("olmo3", {}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 16}),
    "gemma3_text": (
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "sliding_window_pattern": 6,
        },
    ),
    "gemma3_text, every third": ("gemma3_text", {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    "granite": ("granite", {"attention_bias": False, "tie_word_embeddings": True}),
    "granite, biases": ("granite", {"attention_bias": True}),
    "phi3": ("phi3", {"sliding_window": None, "rope_parameters": LONGROPE}),
    "phi3, windows": ("phi3", {"sliding_window": 64, "rope_parameters": LONGROPE}),
    "phi3, no scaling": ("phi3", {"sliding_window": None, "rope_parameters": None}),
    "mistral, windows": ("mistral", {"sliding_window": 40}),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "exaone4, windows": ("exaone4", {"num_hidden_layers": 64, "initializer_range": 0.1}),
    "glm4": ("glm4", {"head_dim": 32}),
    "smollm3, yarn": ("smollm3", {"rope_parameters": YARN}),
    "olmo2, yarn": ("olmo2", {"rope_parameters": YARN}),
    "gemma2, linear": (
        "gemma2",
        {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "rope_parameters": LINEAR},
    ),
    "granite, llama3": ("granite", {"rope_parameters": LLAMA3}),
    "granite, yarn": ("granite", {"rope_parameters": YARN}),
    "exaone4, llama3": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4, "rope_parameters": LLAMA3},
    ),
    "glm4, yarn": ("glm4", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}),
    "glm4, biases": ("glm4", {"attention_bias": True}),
}


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name not in SHORTER])
def test_the_configuration_comes_back(name, tmp_path, run):
    source = tiny(tmp_path, CONFIGURATIONS[name][0], **CONFIGURATIONS[name][1])
    assert run("convert", source, tmp_path / "m.gguf", "--no-check")[0] == 0
    assert run("convert", tmp_path / "m.gguf", tmp_path / "back.apr")[0] == 0
    config = config_of(source)
    if config.family == "mistral":  # GGUF has no name for it
        config = replace(config, family="llama")
    assert config_of(tmp_path / "back.apr") == config
    before, after = tensors_of(source), tensors_of(tmp_path / "back.apr")
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        if name.startswith("gemma") and tensor.endswith("norm.weight"):
            assert np.allclose(after[tensor], values, rtol=0, atol=2**-23)  # GGUF has 1 + w
        else:
            assert np.array_equal(after[tensor], values), tensor


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_llama_cpp_predicts_the_same_tokens(name, tmp_path, run):
    source = tiny(tmp_path, CONFIGURATIONS[name][0], **CONFIGURATIONS[name][1])
    code, out, errors = run("convert", source, tmp_path / "m.gguf", "--check", "--json")
    assert code == 0, errors
    agreement = json.loads(out)["llama_cpp"]
    assert agreement["positions"] == 8 * 16
    assert agreement["same_token"] >= 127
    # llama.cpp has a table of 65,536 entries for Gemma's gate.
    assert agreement["largest_difference"] < (0.03 if name.startswith("gemma") else 1e-3)
    assert agreement["same_ids"] == 8


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("dtype", ["f16", "bf16", *LOSSY])
def test_llama_cpp_agrees_about_every_dtype(dtype, tmp_path, run):
    source = tiny(tmp_path)
    code, out, errors = run("convert", source, tmp_path / "m.gguf", "--dtype", dtype, "--json")
    assert code == 0, errors
    assert json.loads(out)["llama_cpp"]["same_token"] >= 0.99 * 128


@pytest.mark.usefixtures("llama_cpp")
def test_a_wrong_file_is_not_written(tmp_path, run, monkeypatch):
    from apr.convert import to_gguf

    source = tiny(tmp_path)
    target = tmp_path / "m.gguf"
    target.write_bytes(b"an earlier file")
    monkeypatch.setattr(to_gguf, "permute", lambda rows, _: rows)
    code, _, errors = run("convert", source, target, "--check")
    assert code == 5
    assert str(target) in errors
    assert "llama.cpp" in errors
    assert target.read_bytes() == b"an earlier file"
    assert run("convert", source, target, "--no-check")[0] == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_a_model_without_a_tokenizer_is_written_with_a_note(tmp_path, run):
    source = tiny(tmp_path, tokenizer=False)
    code, _, errors = run("convert", source, tmp_path / "m.gguf", "--no-check")
    assert code == 0
    assert "tokenizer" in errors
    assert fields_of(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "none"


@pytest.mark.usefixtures("llama_cpp")
def test_a_model_without_a_tokenizer_cannot_be_compared_with_llama_cpp(tmp_path, run):
    source = tiny(tmp_path, tokenizer=False)
    code, _, errors = run("convert", source, tmp_path / "m.gguf", "--check")
    assert code == 5
    assert "tokenizer" in errors
    code, out, _ = run("convert", source, tmp_path / "m.gguf", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["llama_cpp"] is None
    assert any("not compared" in note for note in result["notes"])


def test_a_tokenizer_can_be_left_out(tmp_path, run):
    code, _, errors = run("convert", tiny(tmp_path), tmp_path / "m.gguf", "--no-tokenizer", "--no-check")
    assert code == 0
    assert "note" not in errors
    assert "tokenizer.ggml.tokens" not in fields_of(tmp_path / "m.gguf")


def test_more_rows_than_tokens_are_padded(tmp_path, run):
    source = tiny(tmp_path, vocab_size=520)
    assert run("convert", source, tmp_path / "m.gguf", "--no-check")[0] == 0
    fields = fields_of(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD519]"
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 520
    assert fields["tokenizer.ggml.token_type"][-1] == 5


def test_more_tokens_than_rows_is_a_note(tmp_path, run):
    source = tiny(tmp_path, vocab_size=256)
    code, _, errors = run("convert", source, tmp_path / "m.gguf", "--no-check")
    assert code == 0
    assert "256 rows" in errors
    assert fields_of(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "none"


def test_another_family_is_refused_by_name(tmp_path, run):
    from apr.convert import convert

    names = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    convert(changed(IMPORTED / "hf_llama_tied", tmp_path, **names), tmp_path / "m.apr")
    code, _, errors = run("convert", tmp_path / "m.apr", tmp_path / "m.gguf")
    assert code == 5
    assert "gpt_neox" in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "m.gguf").exists()


def test_weights_that_do_not_fit_leave_nothing(tmp_path, run):
    values = np.ones((512, 64), np.float32)
    values[3, 4] = np.nan
    source = resaved(tmp_path, {"model.embed_tokens.weight": values})
    code, _, errors = run("convert", source, tmp_path / "m.gguf", "--dtype", "q8_0")
    assert code == 6
    assert "token_embd.weight" in errors
    source = resaved(tmp_path, dropped=["model.norm.weight"])
    assert run("convert", source, tmp_path / "m.gguf")[0] == 6
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("dtype", ["bool", "uint16", "int64", "complex64"])
def test_weights_that_are_not_floating_point_are_refused(dtype, tmp_path, run):
    import apr

    name = "model.layers.0.mlp.up_proj.weight"
    with apr.load(apr_file(tmp_path, "llama_untied")) as file:
        values = file.numpy(name).astype(dtype)
    code, _, errors = run("convert", resaved(tmp_path, {name: values}), tmp_path / "m.gguf")
    assert code == 6
    (line,) = errors.splitlines()
    assert name in line
    assert "floating-point" in line
    assert not (tmp_path / "m.gguf").exists()


def test_training_state_and_a_copy_of_a_tied_head_are_left_out(tmp_path, run):
    import gguf

    from apr.convert import convert

    embedding = tensors_of(convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr").target)[
        "model.embed_tokens.weight"
    ]
    state = {"__training__.optimizer.step": np.ones(1, np.int64), "lm_head.weight": embedding}
    source = resaved(tmp_path, state)
    assert run("convert", source, tmp_path / "m.gguf", "--no-check")[0] == 0
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(names) == 20
    assert "output.weight" not in names


def test_chat_templates_and_special_tokens_are_kept(tmp_path, run):
    from apr.convert import convert

    directory = changed(IMPORTED / "hf_llama_tied", tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"content": "<|endoftext|>"},
        "bos_token": "<|endoftext|>",
        "chat_template": [
            {"name": "default", "template": "{{ messages }}"},
            {"name": "tool_use", "template": "{{ tools }}"},
        ],
    }
    (directory / "tokenizer_config.json").chmod(0o644)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    convert(directory, tmp_path / "m.apr")
    assert run("convert", tmp_path / "m.apr", tmp_path / "m.gguf", "--no-check")[0] == 0
    fields = fields_of(tmp_path / "m.gguf")
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is False
    # A file that came from GGUF keeps the template too.
    assert run("convert", tmp_path / "m.gguf", tmp_path / "again.apr")[0] == 0
    assert run("convert", tmp_path / "again.apr", tmp_path / "again.gguf", "--no-check")[0] == 0
    again = fields_of(tmp_path / "again.gguf")
    assert again["tokenizer.chat_template"] == "{{ messages }}"
    assert {key: value for key, value in again.items() if key.startswith("tokenizer.ggml.")} == {
        key: value for key, value in fields.items() if key.startswith("tokenizer.ggml.")
    }


def test_two_conversions_are_the_same_bytes(tmp_path, run):
    source = apr_file(tmp_path, "llama_untied")
    for name in ("one", "two"):
        assert run("convert", source, tmp_path / f"{name}.gguf", "--dtype", "q5_0", "--no-check")[0] == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_memory_does_not_grow_with_the_file(tmp_path):
    source = tiny(tmp_path, vocab_size=2_000_000, tokenizer=False)
    assert source.stat().st_size > 500_000_000
    grown = memory_of_conversions(source, tmp_path / "m.gguf")
    assert grown < 250_000, f"{grown} kB"


@pytest.mark.parametrize("name", sorted(SHORTER))
def test_windows_that_llama_cpp_lacks_shorten_the_context(name, tmp_path, run):
    family, changes = CONFIGURATIONS[name]
    code, _, errors = run("convert", tiny(tmp_path, family, **changes), tmp_path / "m.gguf", "--no-check")
    assert code == 0
    assert "sliding windows" in errors
    fields = fields_of(tmp_path / "m.gguf")
    assert fields[f"{fields['general.architecture']}.context_length"] == changes["sliding_window"]


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("qwen3", {"attention_bias": True}, "biases"),
        ("olmo2", {"attention_bias": True}, "biases"),
        ("llama", {"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "dynamic"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "beta_fast"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
        ("olmo2", {"head_dim": 32}, "head_dim"),
        ("gemma2", {"query_pre_attn_scalar": 16, "tie_word_embeddings": False}, "tie_word_embeddings"),
        ("qwen2", {"rope_parameters": LLAMA3}, "llama3"),
        ("gemma2", {"query_pre_attn_scalar": 17, "tie_word_embeddings": True}, "scale"),
        ("gemma2", {"query_pre_attn_scalar": 16, "attn_logit_softcapping": None}, "softcap"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"),
        ("exaone4", {"sliding_window": 8}, "4 layers"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(family, changes, says, tmp_path, run):
    source = tiny(tmp_path, family, **{"tie_word_embeddings": family == "gemma2"} | changes)
    code, _, errors = run("convert", source, tmp_path / "m.gguf")
    assert code == 5
    assert says in errors
    assert family in errors
    assert not (tmp_path / "m.gguf").exists()


def test_windows_in_other_layers_are_refused(tmp_path, run):
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    source = tiny(tmp_path, "olmo3", layer_types=kinds)
    code, _, errors = run("convert", source, tmp_path / "m.gguf")
    assert code == 5
    assert "windows" in errors


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("kind", ["sentencepiece", "qwen2", "llama-bpe", "gpt-4o", "tekken"])
def test_llama_cpp_gives_texts_the_same_ids(kind, tmp_path, run):
    from tests.convert.test_gguf_tokenizer import trained

    source = tiny(tmp_path, tokenizer=trained(kind), vocab_size=600)
    code, out, errors = run("convert", source, tmp_path / "m.gguf", "--check", "--json")
    assert code == 0, errors
    assert json.loads(out)["llama_cpp"]["same_ids"] == 8


@pytest.mark.usefixtures("llama_cpp")
def test_large_files_are_not_compared_with_llama_cpp_unless_asked_to(tmp_path, run, monkeypatch):
    from apr.convert import check_gguf

    source = tiny(tmp_path)
    for limit, says in (("_MAX_SIZE", "GB"), ("_MEMORY_SHARE", "memory")):
        with monkeypatch.context() as patch:
            patch.setattr(check_gguf, limit, 1e-9)
            code, out, _ = run("convert", source, tmp_path / "m.gguf", "--json")
            result = json.loads(out)
            assert (code, result["llama_cpp"]) == (0, None)
            assert any("--check" in note and says in note for note in result["notes"])
            code, out, _ = run("convert", source, tmp_path / "m.gguf", "--check", "--json")
            assert json.loads(out)["llama_cpp"] is not None


def test_without_llama_cpp_a_note_says_so_and_check_is_unavailable(tmp_path, run, monkeypatch):
    from apr.convert import check_gguf

    monkeypatch.setattr(check_gguf, "find_spec", lambda _: None)
    source = tiny(tmp_path)
    code, _, errors = run("convert", source, tmp_path / "m.gguf")
    assert code == 0
    assert "xllamacpp" in errors
    (tmp_path / "m.gguf").unlink()
    assert run("convert", source, tmp_path / "m.gguf", "--check")[0] == 9
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.usefixtures("llama_cpp")
def test_a_file_that_llama_cpp_cannot_load_is_not_written(tmp_path, run, monkeypatch):
    from apr.convert import gguf_families

    original = gguf_families.architecture_keys

    def without_heads(config):
        keys, notes = original(config)
        return {key: value for key, value in keys.items() if key != "attention.head_count"}, notes

    monkeypatch.setattr("apr.convert.to_gguf.architecture_keys", without_heads)
    code, _, errors = run("convert", tiny(tmp_path), tmp_path / "m.gguf", "--check")
    assert code == 5
    assert "cannot run" in errors
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.usefixtures("llama_cpp")
def test_a_model_in_several_files_is_compared_with_llama_cpp(tmp_path, run):
    source = tiny(tmp_path)
    index = tmp_path / "several" / "model.apr.index.json"
    assert run("convert", source, index, "--max-shard-size", "200KB")[0] == 0
    code, out, errors = run("convert", index, tmp_path / "m.gguf", "--check", "--json")
    assert code == 0, errors
    assert json.loads(out)["llama_cpp"]["same_token"] >= 127
    assert run("convert", source, tmp_path / "one.gguf", "--no-check")[0] == 0
    # The name is that of the model, and the tensors are in the order of the decoder.
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()

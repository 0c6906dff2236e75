"""Transformers directories are read with their weights, configuration and tokenizer."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.models import (
    IMPORTED,
    changed,
    logits,
    logits_of_ours,
    transformers_model,
)

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert
from apr.errors import UsageError, WeightsError


def test_a_decoder_starts_from_a_converted_directory(tmp_path):
    from apr.data.tokenizers import load_tokenizer
    from apr.model import Decoder

    convert(IMPORTED / "hf_llama_untied", tmp_path / "m.apr")
    expected = logits(transformers_model(IMPORTED / "hf_llama_untied"))
    assert torch.allclose(logits_of_ours(Decoder.from_apr(tmp_path / "m.apr")), expected, atol=1e-4, rtol=0)
    inside, beside = load_tokenizer(tmp_path / "m.apr"), load_tokenizer(IMPORTED / "hf_llama_untied")
    text = "def f(x):\n    return x + 1"
    assert inside.tokenizer.encode(text).ids == beside.tokenizer.encode(text).ids
    assert (inside.sha256, inside.eos_id) == (beside.sha256, beside.eos_id)
    with apr.load(tmp_path / "m.apr") as file:
        assert file.header.flags & 512  # HAS_VOCAB
        assert file.metadata["num_layers"] == 2


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path):
    copy = changed(IMPORTED / "hf_llama_untied", tmp_path, tie_word_embeddings=True)
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        convert(copy, tmp_path / "m.apr")


def rewritten(directory, tmp_path, rename=lambda name: name, **tensors):
    """Copy a model directory with other names or tensors; None drops one."""
    copy = changed(directory, tmp_path)
    stored = load_file(copy / "model.safetensors") | tensors
    save_file(
        {rename(name): value for name, value in stored.items() if value is not None},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    return copy


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({NORM: None}, ["missing", NORM]),
        ({"model.layers.0.mlp.extra.weight": torch.zeros(3)}, ["unexpected", "mlp.extra"]),
        ({NORM: torch.zeros(5)}, [NORM, "[5]"]),
    ],
    ids=["missing", "extra", "resized"],
)
def test_a_mismatch_is_refused_and_written_on_request(tensors, words, tmp_path):
    source = rewritten(IMPORTED / "hf_llama_untied", tmp_path, **tensors)
    with pytest.raises(WeightsError, match="--allow-mismatch") as error:
        convert(source, tmp_path / "m.apr")
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "m.apr").exists()
    (note,) = convert(source, tmp_path / "m.apr", ConvertOptions(allow_mismatch=True)).notes
    assert all(word in note for word in words)
    with apr.load(tmp_path / "m.apr") as file:
        assert (NORM in file) == (tensors.get(NORM, 0) is not None)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_the_prefix_of_a_wrapper_is_named(prefix, tmp_path):
    source = rewritten(IMPORTED / "hf_llama_untied", tmp_path, lambda name: prefix + name)
    with pytest.raises(WeightsError, match="save") as error:
        convert(source, tmp_path / "m.apr")
    assert repr(prefix) in str(error.value)


def test_a_peft_adapter_is_named_with_the_way_to_merge_it(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "m.apr")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "PEFT" in line
    assert "merge_and_unload" in line


def store(tensors, directory, files):
    """Write tensors as safetensors, in one file or in two with their index."""
    names = sorted(tensors)
    if files == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize(
    "stored", [[HEAD], [EMBEDDING], [HEAD, EMBEDDING]], ids=["head", "embedding", "both"]
)
def test_a_tied_model_is_what_transformers_loads_however_it_is_stored(stored, files, tmp_path, run):
    from apr.model import Decoder

    source = changed(IMPORTED / "hf_qwen2_tied", tmp_path)
    tensors = load_file(source / "model.safetensors")
    embedding = tensors.pop(EMBEDDING)
    store(tensors | {name: embedding.clone() for name in stored}, source, files)
    theirs = transformers_model_of(source)
    assert apr.inspect(source)["param_count"] == theirs.num_parameters()
    convert(source, tmp_path / "m.apr")
    assert apr.inspect(tmp_path / "m.apr")["param_count"] == theirs.num_parameters()
    ours = Decoder.from_apr(tmp_path / "m.apr")
    assert torch.allclose(logits_of_ours(ours), logits(theirs), atol=1e-4, rtol=0)
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert torch.equal(logits(transformers_model(tmp_path / "back")), logits(theirs))
    assert run("diff", source, tmp_path / "m.apr")[0] == 0


def transformers_model_of(directory):
    """transformers' model, which reports a tied head as missing if it is stored alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("tool", ["safetensors", "apr"])
def test_an_apr_file_with_the_head_alone_is_the_whole_model(tool, tmp_path, run):
    """As `save_model` leaves a tied model: one name of the two, that which sorts first."""
    from safetensors.torch import save_model

    import apr.torch
    from apr.model import Decoder

    theirs = transformers_model(IMPORTED / "hf_qwen2_tied")
    convert(IMPORTED / "hf_qwen2_tied", tmp_path / "whole.apr")
    with apr.load(tmp_path / "whole.apr") as whole:
        metadata = dict(whole.metadata)
    if tool == "safetensors":
        save_model(theirs, str(tmp_path / "model.safetensors"))
        tensors = load_file(tmp_path / "model.safetensors")
    else:
        apr.torch.save_model(theirs, str(tmp_path / "saved.apr"))
        with apr.load(tmp_path / "saved.apr") as saved:
            tensors = {name: values.clone() for name, values in saved.items()}
    assert (HEAD in tensors, EMBEDDING in tensors) == (True, False)
    apr.save(tensors, tmp_path / "m.apr", metadata)
    assert apr.inspect(tmp_path / "m.apr")["param_count"] == theirs.num_parameters()
    ours = Decoder.from_apr(tmp_path / "m.apr")
    assert torch.allclose(logits_of_ours(ours), logits(theirs), atol=1e-4, rtol=0)
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert torch.equal(logits(transformers_model(tmp_path / "hf")), logits(theirs))
    convert(tmp_path / "m.apr", tmp_path / "m.gguf", ConvertOptions(check=False))
    convert(tmp_path / "m.gguf", tmp_path / "again.apr")
    assert run("diff", tmp_path / "again.apr", tmp_path / "hf")[0] == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "smollm3", "gemma2"])
@pytest.mark.parametrize("head", [True, False])
def test_without_its_key_a_head_is_tied_as_in_transformers_class(family, head, tmp_path):
    """Llama's default is a head of its own: without one, something is missing."""
    from tests.convert.models import tiny

    from apr.model import Decoder

    # `tiny` writes an .apr file too, which is not used here.
    tiny(tmp_path, family, tokenizer=False, tie_word_embeddings=not head)
    source = tmp_path / "hf"
    config = json.loads((source / "config.json").read_text())
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    by_default = family in {"smollm3", "gemma2"}
    if head == by_default:  # a head for a class that ties, or none for one that does not
        with pytest.raises(WeightsError, match=r"lm_head\.weight") as error:
            convert(source, tmp_path / "m.apr")
        assert "tie_word_embeddings" in str(error.value)
        return
    convert(source, tmp_path / "m.apr")
    expected = logits(transformers_model(source))
    actual = logits_of_ours(Decoder.from_apr(tmp_path / "m.apr"))
    assert torch.allclose(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_configuration_of_2023_has_the_defaults_of_its_class(tmp_path):
    """The first Llama wrote neither the number of KV heads nor the base of its positions."""
    from tests.convert.models import tiny

    from apr.model import Decoder

    tiny(tmp_path, "llama", tokenizer=False, num_key_value_heads=4, head_dim=None)
    source = tmp_path / "hf"
    config = json.loads((source / "config.json").read_text())
    kept = (
        "architectures bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size "
        "max_position_embeddings model_type num_attention_heads num_hidden_layers rms_norm_eps vocab_size"
    ).split()
    old = {key: config[key] for key in kept} | {
        "pad_token_id": 0, "torch_dtype": "float32", "transformers_version": "4.27.0.dev0", "use_cache": True,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(old))
    assert convert(source, tmp_path / "m.apr").notes == ()
    expected = logits(transformers_model(source))
    assert torch.allclose(logits_of_ours(Decoder.from_apr(tmp_path / "m.apr")), expected, atol=1e-3, rtol=0)
    with apr.load(tmp_path / "m.apr") as file:
        metadata = file.metadata
    assert (metadata["num_kv_heads"], metadata["rope_theta"]) == (4, 10000.0)
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == old


@pytest.mark.parametrize(
    "facts",
    [
        {"model_type": "cohere", "architectures": ["CohereForCausalLM"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"quantization_config": {"quant_method": "awq"}},
        {"mlp_bias": True},
        {"rope_scaling": {"rope_type": "invented", "factor": 2.0}},
    ],
)
def test_a_model_that_cannot_be_trained_keeps_its_sizes_and_is_refused_by_its_reason(facts, tmp_path):
    from apr.errors import RefusedError
    from apr.model import Decoder

    source = changed(IMPORTED / "hf_llama_untied", tmp_path, **facts)
    (note,) = convert(source, tmp_path / "m.apr").notes
    result = apr.inspect(tmp_path / "m.apr")
    config = json.loads((source / "config.json").read_text())
    assert result["num_layers"] == config["num_hidden_layers"]
    assert (result["hidden_size"], result["vocab_size"]) == (config["hidden_size"], config["vocab_size"])
    with pytest.raises(RefusedError) as error:
        Decoder.from_apr(tmp_path / "m.apr")
    assert str(error.value).split(": ", 1)[-1] in note


def test_missing_weights_and_pickles_are_refused(tmp_path, capsys):
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    assert main(["convert", str(source), str(tmp_path / "m.apr")]) == 3
    assert "model.safetensors" in capsys.readouterr().err
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert main(["convert", str(source), str(tmp_path / "m.apr")]) == 4
    assert "safe_serialization=True" in capsys.readouterr().err
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../a.safetensors"}})
    )
    assert main(["convert", str(source), str(tmp_path / "m.apr")]) == 4
    assert "'../a.safetensors'" in capsys.readouterr().err


def test_a_tokenizer_too_large_for_metadata_is_compacted_or_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(IMPORTED / "hf_llama_tied", copy)
    (copy / "tokenizer.json").chmod(0o644)
    spec = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(spec, indent=2) + " " * (16 << 20))
    convert(copy, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        assert json.loads(file.metadata["hf_tokenizer"]["tokenizer.json"]) == spec
    (copy / "tokenizer.json").write_text(json.dumps(spec | {"more": "x" * (16 << 20)}))
    with pytest.raises(UsageError, match="--no-tokenizer"):
        convert(copy, tmp_path / "m.apr")
    convert(copy, tmp_path / "m.apr", ConvertOptions(tokenizer=False))
    with apr.load(tmp_path / "m.apr") as file:
        assert "hf_tokenizer" not in file.metadata


def test_a_config_that_json_cannot_store_is_refused_in_one_line(tmp_path, capsys):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path, limit="\ud800")
    assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert str(copy / "config.json") in line
    assert "surrogate" in line
    shutil.rmtree(copy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_infinities_in_a_configuration_come_back(name, tmp_path):
    """As transformers writes them for Mamba: Python's literals, or since 4.57 an object."""
    from transformers import AutoConfig

    source = changed(IMPORTED / "hf_llama_tied", tmp_path)
    more = {"limits": [0.0, float("inf"), {"low": float("-inf")}], "new": {"__float__": "Infinity"}}
    path = source / name
    config = (json.loads(path.read_text()) if path.exists() else {}) | more
    path.write_text(json.dumps(config))
    assert "Infinity" in path.read_text()
    assert convert(source, tmp_path / "m.apr").notes == ()
    assert apr.verify(tmp_path / "m.apr").ok
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert json.loads((tmp_path / "back" / name).read_text()) == config
    before, after = (AutoConfig.from_pretrained(path) for path in (source, tmp_path / "back"))
    if name == "config.json":
        assert before.limits == after.limits == more["limits"]
        assert before.new == after.new == float("inf")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_size_that_is_no_number_is_named(value, tmp_path):
    source = changed(IMPORTED / "hf_llama_tied", tmp_path, rope_theta=value)
    (note,) = convert(source, tmp_path / "m.apr").notes
    assert "rope_theta" in note
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert str(value) == str(json.loads((tmp_path / "back/config.json").read_text())["rope_theta"])


def test_code_beside_a_model_is_left_out_with_a_note(tmp_path):
    source = changed(IMPORTED / "hf_llama_tied", tmp_path, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (source / "modeling_x.py").write_text("")
    (note,) = convert(source, tmp_path / "m.apr").notes
    assert "modeling_x.py" in note
    assert "trust_remote_code" in note

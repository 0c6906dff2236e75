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


def test_a_tied_model_stored_as_the_head_alone_is_read(tmp_path):
    source = IMPORTED / "hf_qwen2_tied"
    embedding = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    copy = rewritten(
        source, tmp_path, **{"model.embed_tokens.weight": None, "lm_head.weight": embedding.clone()}
    )
    convert(copy, tmp_path / "m.apr")
    convert(source, tmp_path / "whole.apr")
    with apr.load(tmp_path / "m.apr") as file, apr.load(tmp_path / "whole.apr") as whole:
        assert list(file) == list(whole)
        assert torch.equal(file["model.embed_tokens.weight"], embedding)


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
    for value in (float("inf"), "\ud800"):
        copy = changed(IMPORTED / "hf_llama_tied", tmp_path, limit=value)
        assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert str(copy) in line
        assert "'hf_config'" in line
        shutil.rmtree(copy)
    assert list(tmp_path.iterdir()) == []

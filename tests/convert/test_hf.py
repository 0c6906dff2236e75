"""transformers directories to .apr and back: configuration, tokenizer, and the same logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert, stream
from apr.errors import ChecksumError, FormatError, RefusedError, UsageError, WeightsError

MODELS = ["qwen2_tied", "qwen2_untied", "llama_tied", "llama_untied"]
IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"


def transformers_model(directory):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits(model):
    ids = torch.arange(60).reshape(2, 30) * 7 % 512
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_gives_identical_logits_and_files(name, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(IMPORTED / f"hf_{name}", source)
    (source / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.7}')
    convert(source, tmp_path / "m.apr")
    assert apr.verify(tmp_path / "m.apr").ok
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert torch.equal(logits(transformers_model(source)), logits(transformers_model(tmp_path / "back")))
    for text in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / text).read_bytes() == (source / text).read_bytes()
    for facts in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / facts).read_text()) == json.loads((source / facts).read_text())
    assert (tmp_path / "back" / "model.safetensors").read_bytes()[8:] == (
        source / "model.safetensors"
    ).read_bytes()[8:]


@pytest.mark.parametrize("path", sorted(IMPORTED.glob("*.apr")), ids=lambda path: path.stem)
def test_every_file_of_the_importer_becomes_a_directory_with_its_logits(path, tmp_path):
    from apr.model import Decoder

    convert(path, tmp_path / "hf")
    model = transformers_model(tmp_path / "hf")
    name = path.stem.removeprefix("from_safetensors_").removeprefix("from_gguf_")
    plain = name.rsplit("_", 1)[0] if name.endswith(("int8", "int4", "fp16")) else name
    if name == plain:
        check_logits(model, IMPORTED / f"{plain}.logits.json")
    # Quantized weights have logits of their own: those of the same file in our decoder.
    ours = logits_of_ours(Decoder.from_apr(path))
    assert torch.allclose(logits(model), ours, atol=1e-4, rtol=0)
    tokenizer = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 512


def check_logits(model, path):
    """Against what transformers gave for the weights that the importer had."""
    expected = json.loads(path.read_text())
    ids = torch.tensor([expected["input_ids"]])
    with torch.no_grad():
        found = model(ids, labels=ids)
    assert abs(found.loss.item() - expected["loss"]) < 1e-4
    assert np.allclose(found.logits[0, -1, :16], expected["logits_last_first16"], atol=1e-4)
    assert np.allclose(found.logits[0].logsumexp(-1), expected["logits_row_logsumexp"], atol=1e-4)
    assert found.logits[0].argmax(-1).tolist() == expected["logits_row_argmax"]


def logits_of_ours(model):
    ids = torch.arange(60).reshape(2, 30) * 7 % 512
    with torch.no_grad():
        return model(ids)


@pytest.mark.parametrize("name", MODELS)
def test_gguf_through_apr_is_what_transformers_saved(name, tmp_path):
    convert(IMPORTED / f"{name}.gguf", tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert torch.equal(
        logits(transformers_model(IMPORTED / f"hf_{name}")), logits(transformers_model(tmp_path / "hf"))
    )


def test_a_decoder_starts_from_a_converted_directory(tmp_path):
    from apr.data.tokenizers import load_tokenizer
    from apr.model import Decoder

    convert(IMPORTED / "hf_llama_untied", tmp_path / "m.apr")
    expected = logits(transformers_model(IMPORTED / "hf_llama_untied"))
    assert torch.allclose(logits_of_ours(Decoder.from_apr(tmp_path / "m.apr")), expected, atol=1e-4, rtol=0)
    inside, beside = load_tokenizer(tmp_path / "m.apr"), load_tokenizer(IMPORTED / "hf_llama_untied")
    text = "def f(x):\n    return x + 1"
    assert inside.encode([text]) == beside.encode([text])
    assert (inside.sha256, inside.eos_id) == (beside.sha256, beside.eos_id)
    with apr.load(tmp_path / "m.apr") as file:
        assert file.header.flags & 512  # HAS_VOCAB
        assert file.metadata["num_layers"] == 2


def sharded(source, directory, monkeypatch_size="200KB"):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(directory, max_shard_size=monkeypatch_size)


def test_several_files_on_each_side(tmp_path):
    source = tmp_path / "sharded"
    sharded(IMPORTED / "hf_qwen2_untied", source)
    assert len(list(source.glob("*.safetensors"))) > 1
    convert(source, tmp_path / "several", ConvertOptions(max_shard_size=150_000))
    files = sorted(path.name for path in (tmp_path / "several").iterdir())
    count = len(files) - 1
    assert files == [
        *(f"model-{i:05}-of-{count:05}.apr" for i in range(1, count + 1)),
        "model.apr.index.json",
    ]
    assert count > 2
    with apr.load(tmp_path / "several") as file:
        assert file.verify().ok
        assert "sharding" not in file.metadata
        convert(source, tmp_path / "one.apr")
        assert file.metadata == apr.load(tmp_path / "one.apr").metadata
        first, *others = file.files
        assert dict(first.metadata) == {**file.metadata, "sharding": first.metadata["sharding"]}
        for place, other in enumerate(others, 1):
            assert other.metadata["sharding"]["shard_index"] == place
            assert other.metadata["hidden_size"] == file.metadata["hidden_size"]
            assert not {"hf_tokenizer", "hf_config", "tokenizer.vocabulary"} & set(other.metadata)
    for target in (tmp_path / "several", tmp_path / "several" / "model.apr.index.json"):
        convert(target, tmp_path / "hf", ConvertOptions(max_shard_size=150_000, force=True))
        assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
        assert torch.equal(logits(transformers_model(source)), logits(transformers_model(tmp_path / "hf")))


def test_a_checkpoint_of_a_run_becomes_a_model(tmp_path):
    from apr.convert.hf_files import HF_CONFIG
    from apr.model import Decoder

    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        metadata = {key: value for key, value in file.metadata.items() if key != HF_CONFIG}
        tensors = dict(file) | {"__training__.optimizer.m.x": torch.zeros(3)}
        apr.save(tensors, tmp_path / "checkpoint.apr", metadata | {"training": {"state": {}}})
    convert(tmp_path / "checkpoint.apr", tmp_path / "hf", ConvertOptions(dtype="bf16"))
    model = transformers_model(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    ours = Decoder.from_apr(tmp_path / "m.apr").bfloat16().float()
    assert torch.allclose(logits(model), logits_of_ours(ours), atol=1e-4, rtol=0)


def changed(directory, tmp_path, **config):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    facts = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").chmod(0o644)
    (copy / "config.json").write_text(json.dumps(facts))
    return copy


def test_a_head_that_is_said_to_be_tied_and_differs_is_refused(tmp_path):
    copy = changed(IMPORTED / "hf_llama_untied", tmp_path, tie_word_embeddings=True)
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        convert(copy, tmp_path / "m.apr")


def test_a_family_that_is_not_trained_is_stored_and_comes_back(tmp_path, capsys):
    copy = changed(
        IMPORTED / "hf_llama_untied", tmp_path, model_type="mistral", architectures=["MistralForCausalLM"]
    )
    assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 0
    assert "apr cannot train it" in capsys.readouterr().err
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert torch.equal(logits(transformers_model(copy)), logits(transformers_model(tmp_path / "hf")))


def test_tensors_that_are_not_the_models_are_refused_by_name(tmp_path, data):
    with pytest.raises(WeightsError, match=r"6 .*q_proj\.bias"):
        convert(data / "aprender-0.72" / "qwen2_biases_lost.apr", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_biases_of_one_row_and_an_empty_head_are_read(tmp_path, data):
    convert(data / "aprender-0.72" / "qwen2_empty_head_f16.apr", tmp_path / "hf")
    model = transformers_model(tmp_path / "hf")
    check_logits(model, data / "aprender-0.72" / "qwen2_empty_head_f16.logits.json")


def test_weights_that_are_not_read(tmp_path, capsys):
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


def test_a_tokenizer_beyond_what_metadata_hold_is_compacted_or_refused(tmp_path):
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


def test_pairs_that_make_no_sense_are_wrong_usage(tmp_path, capsys):
    model = IMPORTED / "from_safetensors_qwen2_tied.apr"
    for arguments, code, says in [
        ([model, model], 2, "source"),
        ([model, tmp_path / "other.apr.index.json"], 2, "model.apr.index.json"),
        ([model, tmp_path / "b", "--keep-quantized"], 2, "--keep-quantized"),
        ([model, tmp_path / "b.safetensors", "--keep-quantized"], 2, "--keep-quantized"),
        ([model, tmp_path / "b.gguf"], 2, "GGUF"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b"], 2, "--max-shard-size"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.apr", "--keep-quantized"], 2, "--keep-quantized"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.apr", "--max-shard-size", "1GB"], 2, "--max-shard-size"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b", "--max-shard-size", "many"], 2, "'many'"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.safetensors"], 2, ".apr"),
        ([tmp_path / "gone", tmp_path / "b.apr"], 3, "gone"),
        ([__file__, tmp_path / "b.apr"], 4, __file__),
    ]:
        assert main(["convert", *map(str, arguments)]) == code, says
        assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_is_replaced_only_by_force_and_as_a_whole(tmp_path, monkeypatch):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "config.json").write_text("kept")
    (target / "vocab.txt").touch()
    model = IMPORTED / "from_safetensors_qwen2_tied.apr"
    with pytest.raises(RefusedError, match="--force"):
        convert(model, target)
    from apr.convert import to_safetensors

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(to_safetensors, "write", full)
        with pytest.raises(OSError, match="No space"):
            convert(model, target, ConvertOptions(force=True))
    assert (target / "config.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    convert(model, target, ConvertOptions(force=True))
    assert not (target / "vocab.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_json_says_what_was_written(tmp_path, capsys):
    assert main(["convert", str(IMPORTED / "hf_llama_tied"), str(tmp_path / "m.apr"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size_bytes"] == (tmp_path / "m.apr").stat().st_size
    with apr.load(tmp_path / "m.apr") as file:
        assert found["tensors"] == len(file)
        assert found["param_count"] == sum(int(np.prod(file.info(name).shape)) for name in file)


def test_neither_torch_nor_transformers_is_needed(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from apr.cli import main; code = main(['convert', *sys.argv[1:]]); "
        "assert not {'torch', 'transformers', 'safetensors'} & sys.modules.keys(); sys.exit(code)"
    )
    for source, target in (
        (IMPORTED / "hf_llama_tied", tmp_path / "m.apr"),
        (tmp_path / "m.apr", tmp_path / "hf"),
    ):
        subprocess.run([sys.executable, "-c", code, str(source), str(target)], check=True)


def resaved(tmp_path, tensors=None, dropped=(), **metadata):
    """The tied Llama as an .apr, with other tensors or metadata."""
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        kept = {name: values for name, values in file.items() if name not in dropped}
        apr.save(kept | (tensors or {}), tmp_path / "changed.apr", dict(file.metadata) | metadata)
    return tmp_path / "changed.apr"


Q = "model.layers.0.self_attn.q_proj.weight"
MISFITS = {
    "a name without a dot": ({"tensors": {"foo": torch.zeros(2)}}, "foo"),
    "a scalar under GGUF's name": (
        {"tensors": {"blk.0.attn_q.weight": torch.tensor(1.0)}, "dropped": [Q]},
        "blk.0.attn_q.weight",
    ),
    "a tied head alone": (
        {"tensors": {"lm_head.weight": torch.zeros(512, 64)}, "dropped": ["model.embed_tokens.weight"]},
        "model.embed_tokens.weight",
    ),
    "layers without end": ({"num_layers": 10**9}, "num_layers"),
    "a vocabulary without end": ({"vocab_size": 2**62}, "[512, 64]"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_its_metadata_is_refused_in_one_line(case, tmp_path, capsys):
    changes, says = MISFITS[case]
    source = resaved(tmp_path, **changes)
    assert main(["convert", str(source), str(tmp_path / "hf")]) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "hf").exists()


def test_metadata_that_were_changed_since_win_over_the_kept_config(tmp_path):
    source = resaved(tmp_path, rope_theta=5000.0, max_position_embeddings=99)
    convert(source, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    before = json.loads((IMPORTED / "hf_llama_tied" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (5000.0, 99)
    assert config["pretraining_tp"] == before["pretraining_tp"]
    model = transformers_model(tmp_path / "hf")
    assert model.config.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize("keys", [["dtype"], ["torch_dtype"], ["dtype", "torch_dtype"], []])
def test_the_dtype_of_a_config_is_that_of_the_weights_and_no_key_is_added(keys, tmp_path):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in {"dtype", "torch_dtype"} - set(keys)}
    (copy / "config.json").write_text(json.dumps(config))
    convert(copy, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == config
    convert(tmp_path / "m.apr", tmp_path / "half", ConvertOptions(dtype="bf16"))
    half = json.loads((tmp_path / "half" / "config.json").read_text())
    assert half == config | dict.fromkeys(keys, "bfloat16")


@pytest.mark.parametrize(
    "facts",
    [{"architectures": ["LlamaForSequenceClassification"]}, {"quantization_config": {"quant_method": "awq"}}],
)
def test_other_tensors_under_a_decoders_configuration_are_stored_and_come_back(facts, tmp_path, capsys):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path, **facts)
    tensors = {"score.weight": torch.rand(2, 64), "layers.0.qweight": torch.arange(4, dtype=torch.int32)}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 0
    assert "apr cannot train it" in capsys.readouterr().err
    convert(tmp_path / "m.apr", tmp_path / "hf")
    for name in ("model.safetensors", "config.json"):
        back, before = (tmp_path / "hf" / name).read_bytes(), (copy / name).read_bytes()
        assert back == before if name != "config.json" else json.loads(back) == json.loads(before)


def test_a_config_that_json_has_no_form_for_is_one_line(tmp_path, capsys):
    for value in (float("inf"), "\ud800"):
        copy = changed(IMPORTED / "hf_llama_tied", tmp_path, limit=value)
        assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert str(copy) in line
        assert "'hf_config'" in line
        shutil.rmtree(copy)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_bytes_goes_along(tmp_path):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path)
    (copy / "tokenizer.model").write_bytes(bytes(range(256)))
    convert(copy, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == bytes(range(256))
    for wrong in ({"tokenizer.model": {"base64": "?"}}, {"../x": "text"}, {"tokenizer.json": 3}):
        apr.stamp(tmp_path / "m.apr", {"hf_tokenizer": wrong}, tmp_path / "wrong.apr")
        with pytest.raises(RefusedError, match="hf_tokenizer"):
            convert(tmp_path / "wrong.apr", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_tokenizer_is_left_out_when_asked(tmp_path):
    left_out = ConvertOptions(tokenizer=False)
    convert(IMPORTED / "llama_tied.gguf", tmp_path / "m.apr", left_out)
    with apr.load(tmp_path / "m.apr") as file:
        assert not [key for key in file.metadata if key.startswith("tokenizer.")]
    convert(IMPORTED / "from_gguf_llama_tied.apr", tmp_path / "hf", left_out)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UsageError, match="--no-tokenizer"):
        convert(tmp_path / "m.apr", tmp_path / "m.safetensors", left_out)


def test_several_safetensors_files_are_read_by_their_index_and_must_be_what_it_says(tmp_path):
    source = tmp_path / "sharded"
    sharded(IMPORTED / "hf_qwen2_untied", source)
    index = source / "model.safetensors.index.json"
    convert(index, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        assert len(file) == 27
        assert dict(file.metadata) == {"format": "pt"}
    honest = json.loads(index.read_text())
    files = sorted(set(honest["weight_map"].values()))
    for where, says in [
        ({"ghost": files[0]}, "ghost"),
        ({"lm_head.weight": "gone.safetensors"}, "gone.safetensors"),
        (dict.fromkeys(honest["weight_map"], files[0]), f"{files[0]}"),
    ]:
        index.write_text(json.dumps(honest | {"weight_map": honest["weight_map"] | where}))
        with pytest.raises(FormatError, match=says):
            convert(source, tmp_path / "no.apr")
    index.write_text(json.dumps(honest))
    shutil.copy(source / files[0], source / files[1])
    with pytest.raises(FormatError, match="two files"):
        convert(source, tmp_path / "no.apr")
    assert not (tmp_path / "no.apr").exists()


@pytest.mark.parametrize("target", ["hf", "m.safetensors"])
def test_a_damaged_source_is_not_made_whole_in_another_format(target, tmp_path):
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    content = bytearray((tmp_path / "m.apr").read_bytes())
    content[-5000] ^= 1
    (tmp_path / "m.apr").write_bytes(content)
    with pytest.raises(ChecksumError):
        convert(tmp_path / "m.apr", tmp_path / target)
    assert not (tmp_path / target).exists()


def test_progress_is_reported_in_every_direction(tmp_path):
    told = []

    def on_tensor(name, done, total):
        told.append((name, done, total))

    for source, target in [
        (IMPORTED / "hf_llama_tied", "a.apr"),
        (IMPORTED / "llama_tied.gguf", "b.apr"),
        (tmp_path / "a.apr", "hf"),
        (tmp_path / "a.apr", "a.safetensors"),
        (tmp_path / "a.safetensors", "c.apr"),
    ]:
        told.clear()
        convert(source, tmp_path / target, on_tensor=on_tensor)
        assert sorted(done for _, done, _ in told) == list(range(20)), target
        assert {total for _, _, total in told} == {20}


def test_a_directory_is_not_replaced_under_what_it_holds(tmp_path, monkeypatch, capsys):
    box = tmp_path / "box"
    box.mkdir()
    convert(IMPORTED / "hf_llama_tied", box / "m.apr")
    (box / "inner").mkdir()
    monkeypatch.chdir(box / "inner")
    for target, says in [(box, "m.apr"), (tmp_path, "m.apr"), (Path(), "current"), (Path(".."), "m.apr")]:
        assert main(["convert", str(box / "m.apr"), str(target), "--force"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert sorted(path.name for path in box.iterdir()) == ["inner", "m.apr"]


def test_of_a_link_what_it_names_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "model.safetensors").touch()
    convert(IMPORTED / "from_gguf_llama_tied.apr", tmp_path / "link", ConvertOptions(force=True))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "target", "flags"),
    [
        (IMPORTED / "hf_llama_tied", "a.apr", []),
        (IMPORTED / "llama_tied.gguf", "a.apr", []),
        (IMPORTED / "hf_llama_tied", "several", ["--max-shard-size", "100KB", "--force"]),
        (IMPORTED / "from_gguf_llama_tied.apr", "hf", ["--force"]),
        (IMPORTED / "from_gguf_llama_tied.apr", "a.safetensors", []),
    ],
)
def test_ctrl_c_leaves_what_was_there(source, target, flags, tmp_path, monkeypatch):
    arguments = ["convert", str(source), str(tmp_path / target), *flags]
    assert main(arguments) == 0
    before = files_of(tmp_path)
    stored, read = stream.TensorStream.byte_chunks, []

    def interrupted(item):
        read.append(item)
        if len(read) == 10:
            raise KeyboardInterrupt
        return stored(item)

    monkeypatch.setattr(stream.TensorStream, "byte_chunks", interrupted)
    assert main(arguments) == 130
    assert files_of(tmp_path) == before


def test_ctrl_c_between_two_renames_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "config.json").write_text("kept")
    rename = Path.rename

    def interrupted(path, new):
        if path.name.startswith("new-"):
            raise KeyboardInterrupt
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(IMPORTED / "from_gguf_llama_tied.apr", target, ConvertOptions(force=True))
    assert (target / "config.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_model_of_no_known_family_is_refused_by_its_path_with_what_to_do(tmp_path, capsys):
    apr.save({"w": np.ones(3)}, tmp_path / "m.apr")
    assert main(["convert", str(tmp_path / "m.apr"), str(tmp_path / "hf")]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"apr convert: error: {tmp_path / 'm.apr'}: ")
    assert "architecture" in line
    assert "--max-shard-size" in line
    several = ["convert", str(tmp_path / "m.apr"), str(tmp_path / "hf"), "--max-shard-size", "1MB"]
    assert main(several) == 0  # what is said to do works

"""transformers directories to .apr and back: configuration, tokenizer, and the same logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert
from apr.errors import RefusedError, UsageError, WeightsError

MODELS = ["qwen2_tied", "qwen2_untied", "llama_tied", "llama_untied"]
IMPORTED = Path(__file__).parents[1] / "data" / "imported-0.72"


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
    # Quantised weights have logits of their own: those of the same file in our decoder.
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
    for target in (tmp_path / "several", tmp_path / "several" / "model.apr.index.json"):
        convert(target, tmp_path / "hf", ConvertOptions(max_shard_size=150_000, force=True))
        assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
        assert torch.equal(logits(transformers_model(source)), logits(transformers_model(tmp_path / "hf")))


def test_a_checkpoint_of_a_run_becomes_a_model(tmp_path):
    from apr.convert.hf import HF_CONFIG
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
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs"):
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
    with pytest.raises(WeightsError, match=r"6 tensors are missing: .*q_proj\.bias"):
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
    assert "neither model.safetensors nor" in capsys.readouterr().err
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert main(["convert", str(source), str(tmp_path / "m.apr")]) == 4
    assert "safe_serialization=True" in capsys.readouterr().err
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../a.safetensors"}})
    )
    assert main(["convert", str(source), str(tmp_path / "m.apr")]) == 4
    assert "'../a.safetensors' is no file of this directory" in capsys.readouterr().err


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
    with pytest.raises(UsageError, match="--no-tokenizer leaves them out"):
        convert(copy, tmp_path / "m.apr")
    convert(copy, tmp_path / "m.apr", ConvertOptions(tokenizer=False))
    with apr.load(tmp_path / "m.apr") as file:
        assert "hf_tokenizer" not in file.metadata


def test_pairs_that_make_no_sense_are_wrong_usage(tmp_path, capsys):
    model = IMPORTED / "from_safetensors_qwen2_tied.apr"
    for arguments, code, says in [
        ([model, tmp_path / "b.apr"], 2, "is an .apr already"),
        ([model, tmp_path / "b.gguf"], 2, "GGUF is read, not written"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b"], 2, "ends in .apr, or give --max-shard-size"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.apr", "--keep-quantized"], 2, "belongs to GGUF"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.apr", "--max-shard-size", "1GB"], 2, "name a directory"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b", "--max-shard-size", "many"], 2, "a size such as 2GB"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.safetensors"], 2, "go through an .apr file"),
        ([tmp_path / "gone", tmp_path / "b.apr"], 3, "No such file"),
        ([__file__, tmp_path / "b.apr"], 4, "not a GGUF, safetensors or .apr file"),
    ]:
        assert main(["convert", *map(str, arguments)]) == code, says
        assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_is_replaced_only_by_force_and_as_a_whole(tmp_path, monkeypatch):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    model = IMPORTED / "from_safetensors_qwen2_tied.apr"
    with pytest.raises(RefusedError, match="--force replaces it"):
        convert(model, target)
    from apr.convert import safetensors

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "write", full)
        with pytest.raises(OSError, match="No space"):
            convert(model, target, ConvertOptions(force=True))
    assert (target / "mine.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    convert(model, target, ConvertOptions(force=True))
    assert not (target / "mine.txt").exists()
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

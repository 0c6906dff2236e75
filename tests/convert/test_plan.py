"""Formats and options that do not belong together are refused before anything is read."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests.convert.models import IMPORTED, changed, sharded

import apr
from apr.cli import main
from apr.convert import convert


def test_pairs_that_cannot_be_converted_are_wrong_usage(tmp_path, capsys):
    model = IMPORTED / "from_safetensors_qwen2_tied.apr"
    for arguments, code, says in [
        ([model, model], 2, "source"),
        ([model, tmp_path / "other.apr.index.json"], 2, "model.apr.index.json"),
        ([model, tmp_path / "b", "--keep-quantized"], 2, "--keep-quantized"),
        ([model, tmp_path / "b.safetensors", "--keep-quantized"], 2, "--keep-quantized"),
        ([model, tmp_path / "b.gguf", "--keep-quantized"], 2, "--keep-quantized"),
        ([model, tmp_path / "b.gguf", "--max-shard-size", "1GB"], 2, "--max-shard-size"),
        ([model, tmp_path / "b.gguf", "--check", "--no-check"], 2, "--no-check"),
        ([model, tmp_path / "b.apr", "--dtype", "q8_0"], 2, "q8_0"),
        ([model, tmp_path / "b", "--dtype", "q4_0"], 2, "q4_0"),
        ([model, tmp_path / "b.apr", "--check"], 2, "--check"),
        ([IMPORTED / "hf_llama_tied", tmp_path / "b.gguf"], 2, ".apr first"),
        ([IMPORTED / "llama_tied.gguf", tmp_path / "b.gguf"], 2, ".apr first"),
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


def test_a_directory_that_holds_the_source_is_not_replaced(tmp_path, monkeypatch, capsys):
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


def test_a_model_without_an_architecture_is_refused_with_what_to_do(tmp_path, capsys):
    apr.save({"w": np.ones(3)}, tmp_path / "m.apr")
    assert main(["convert", str(tmp_path / "m.apr"), str(tmp_path / "hf")]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"apr convert: error: {tmp_path / 'm.apr'}: ")
    assert "architecture" in line
    assert "--max-shard-size" in line
    several = ["convert", str(tmp_path / "m.apr"), str(tmp_path / "hf"), "--max-shard-size", "1MB"]
    assert main(several) == 0  # what is said to do works


FOREIGN = (
    "o.bin o.pt O.PTH o.onnx o.ckpt o.h5 o.npz o.npy o.pkl o.keras o.tflite o.msgpack o.ggml o.zip o.tar.gz "
    "o.json o.safetensor o.aprr o.gguff"
).split()


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("source", ["from_safetensors_qwen2_tied.apr", "hf_llama_tied", "llama_tied.gguf"])
def test_a_target_of_another_format_does_not_become_a_directory(name, source, tmp_path, run):
    for more in ([], ["--max-shard-size", "1MB"]):
        code, _, errors = run("convert", IMPORTED / source, tmp_path / name, *more)
        assert code == 2
        (line,) = errors.splitlines()
        assert str(tmp_path / name) in line
        assert ".gguf" in line or "did you mean" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "model-v1.0", "llama.hf", "out", "o.d"])
def test_a_directory_may_have_a_dot_in_its_name(name, tmp_path):
    convert(IMPORTED / "from_safetensors_qwen2_tied.apr", tmp_path / name)
    assert (tmp_path / name / "config.json").exists()


def foreign_files(directory):
    """Files of other formats as their own libraries write them, and words that the error must have."""
    np.savez(directory / "m.npz", w=np.ones(3))
    shutil.copy(directory / "m.npz", directory / "renamed.bin")
    np.save(directory / "m.npy", np.ones(3))
    torch.save({"w": torch.ones(3)}, directory / "pytorch_model.bin")
    torch.save({"w": torch.ones(3)}, directory / "m.ckpt", _use_new_zipfile_serialization=False)
    (directory / "m.pkl").write_bytes(pickle.dumps({"w": 1}))
    (directory / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (directory / "m.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (directory / "page.gguf").write_text("<!DOCTYPE html><html></html>")
    (directory / "config.json").write_text("{}")
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    return {
        "m.npz": ["NumPy", "numpy.load"],
        "renamed.bin": ["NumPy", "numpy.load"],
        "m.npy": ["NumPy", "numpy.load"],
        "pytorch_model.bin": ["PyTorch", "torch.load"],
        "m.ckpt": ["pickle", "torch.load"],
        "m.pkl": ["pickle"],
        "m.h5": ["HDF5", "h5py"],
        "m.safetensors": ["Git LFS", "git lfs pull"],
        "page.gguf": ["HTML", "download"],
        "config.json": ["configuration", f"apr convert: {directory}"],
        "pytorch_model.bin.index.json": ["pickles", "safetensors"],
    }


def test_a_source_of_another_format_is_named_with_what_to_do(tmp_path, run):
    source = tmp_path / "source"
    source.mkdir()
    for name, words in foreign_files(source).items():
        code, _, errors = run("convert", source / name, tmp_path / "m.apr")
        assert code == 4, name
        (line,) = errors.splitlines()
        assert str(source / name) in line
        assert all(word in line for word in words), line
        if "NumPy" in words:
            assert "torch.load" not in line
    assert not (tmp_path / "m.apr").exists()


def adapter(directory, weights="adapter_model.safetensors"):
    """The files that PEFT writes for a LoRA adapter."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if weights.endswith(".bin"):
        torch.save({name: torch.ones(2, 2)}, directory / weights)
    else:
        save_file({name: np.ones((2, 2))}, directory / weights)
    return directory


@pytest.mark.parametrize(
    "layout",
    ["safetensors", "bin", "beside a config.json", "named adapters", "checkpoint", "weights", "config"],
)
def test_every_layout_of_a_peft_adapter_is_named_with_the_way_to_merge_it(layout, tmp_path, run):
    source = named = tmp_path / "adapter"
    if layout == "named adapters":  # a model with several
        named = adapter(source / "french")
        adapter(source / "german")
        (source / "README.md").write_text("")
    elif layout == "checkpoint":  # of transformers' Trainer
        source = named = adapter(tmp_path / "out" / "checkpoint-500")
        (source / "trainer_state.json").write_text("{}")
        (source / "optimizer.pt").write_bytes(b"PK")
    else:
        adapter(source, "adapter_model.bin" if layout == "bin" else "adapter_model.safetensors")
    if layout == "beside a config.json":
        (source / "config.json").write_text('{"model_type": "llama"}')
    if layout in {"weights", "config"}:
        source /= "adapter_model.safetensors" if layout == "weights" else "adapter_config.json"
    code, _, errors = run("convert", source, tmp_path / "m.apr")
    assert code == 4
    (line,) = errors.splitlines()
    assert str(source) in line
    assert f'AutoPeftModelForCausalLM.from_pretrained("{named}").merge_and_unload()' in line
    assert not (tmp_path / "m.apr").exists()


def test_an_adapter_beside_its_base_model_is_a_note(tmp_path):
    source = changed(IMPORTED / "hf_llama_tied", tmp_path)
    (source / "adapter_config.json").write_text("{}")
    (note,) = convert(source, tmp_path / "m.apr").notes
    assert "adapter" in note


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("given", ["index", "part", "file"])
def test_files_of_a_transformers_model_lead_to_their_directory(given, beside, tmp_path):
    source = tmp_path / "hf"
    if given == "file":
        shutil.copytree(IMPORTED / "hf_qwen2_untied", source)
    else:
        sharded(IMPORTED / "hf_qwen2_untied", source)
    if not beside:
        (source / "config.json").unlink()
    path = {
        "index": source / "model.safetensors.index.json",
        "part": next(iter(source.glob("model-00001-of-*.safetensors")), None),
        "file": source / "model.safetensors",
    }[given]
    notes = convert(path, tmp_path / "m.apr").notes
    if given == "file" and not beside:
        assert notes == ()  # any file of tensors may have this name
        return
    (note,) = notes
    assert f"apr convert {source} {tmp_path / 'm.apr'}" in note
    assert ("config.json into" in note) == (not beside)
    assert ("files of a model" in note) == (given == "part")


def test_a_file_that_apr_wrote_needs_no_note(tmp_path):
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert convert(tmp_path / "model.safetensors", tmp_path / "again.apr").notes == ()

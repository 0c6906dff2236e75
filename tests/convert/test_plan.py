"""Formats and options that do not belong together are refused before anything is read."""

from pathlib import Path

import numpy as np
from tests.convert.models import (
    IMPORTED,
)

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

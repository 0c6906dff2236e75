"""apr inspect."""

import json
from pathlib import Path

import apr

DATA = Path(__file__).parents[1] / "fixtures" / "aprender-0.72"


QWEN = DATA / "qwen2_tied_bf16_streamed.apr"


def test_json_has_the_facts_of_the_file(run):
    code, out, err = run("inspect", "--json", QWEN)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report == apr.inspect(QWEN)
    assert {key: report[key] for key in ("valid", "checksum_valid", "format", "version", "kind")} == {
        "valid": True,
        "checksum_valid": True,
        "format": "APR v2",
        "version": "2.0",
        "kind": "model",
    }
    file = apr.load(QWEN)
    assert report["file"] == str(QWEN)
    assert report["size_bytes"] == QWEN.stat().st_size
    assert report["param_count"] == sum(tensor.numel() for tensor in file.values())
    assert (report["tensor_count"], report["dtypes"]) == (26, {"bf16": 26})
    assert report["architecture"] == "qwen2"
    for key in ("num_layers", "num_heads", "hidden_size", "vocab_size"):
        assert report[key] == file.metadata[key]
    assert report["flags"]["layout_row_major"] is True
    assert report["flags"]["quantized"] is False
    assert report["metadata"] == file.metadata


def test_other_spellings_of_sizes_are_read(run, tmp_path):
    apr.save(
        {}, tmp_path / "m.apr", {"n_layer": 3, "d_model": 8, "architecture": "x", "hf_model_type": "llama"}
    )
    report = json.loads(run("inspect", "--json", tmp_path / "m.apr")[1])
    assert (report["num_layers"], report["hidden_size"], report["vocab_size"]) == (3, 8, None)
    assert report["architecture"] == "llama"


def test_text_output_is_not_wrapped_in_a_pipe(run, tmp_path):
    apr.save({}, tmp_path / "m.apr", {"name": "a" * 60 + "end", "steer": "\x1b[31mred", "long": ["x"] * 1000})
    code, out, err = run("inspect", tmp_path / "m.apr")
    assert (code, err) == (0, "")
    assert "a" * 60 + "end" in out
    assert "\x1b" not in out
    assert "1000 items" in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_quick_does_not_check_the_footer(run):
    report = json.loads(run("inspect", "--json", "--quick", QWEN)[1])
    assert (report["valid"], report["checksum_valid"]) == (True, None)

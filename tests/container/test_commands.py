"""apr inspect, tensors and verify on files that open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import apr

DATA = Path(__file__).parents[1] / "fixtures" / "aprender-0.72"
QWEN = DATA / "qwen2_tied_bf16_streamed.apr"


def test_inspect_says_what_the_file_is(run):
    code, out, err = run("inspect", "--json", QWEN)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found == apr.inspect(QWEN)
    assert {key: found[key] for key in ("valid", "checksum_valid", "format", "version", "kind")} == {
        "valid": True,
        "checksum_valid": True,
        "format": "APR v2",
        "version": "2.0",
        "kind": "model",
    }
    file = apr.load(QWEN)
    assert found["file"] == str(QWEN)
    assert found["size_bytes"] == QWEN.stat().st_size
    assert found["param_count"] == sum(tensor.numel() for tensor in file.values())
    assert (found["tensor_count"], found["dtypes"]) == (26, {"bf16": 26})
    assert found["architecture"] == "qwen2"
    for key in ("num_layers", "num_heads", "hidden_size", "vocab_size"):
        assert found[key] == file.metadata[key]
    assert found["flags"]["layout_row_major"] is True
    assert found["flags"]["quantized"] is False
    assert found["metadata"] == file.metadata


def test_inspect_reads_the_other_spellings(run, tmp_path):
    apr.save(
        {}, tmp_path / "m.apr", {"n_layer": 3, "d_model": 8, "architecture": "x", "hf_model_type": "llama"}
    )
    found = json.loads(run("inspect", "--json", tmp_path / "m.apr")[1])
    assert (found["num_layers"], found["hidden_size"], found["vocab_size"]) == (3, 8, None)
    assert found["architecture"] == "llama"


def test_inspect_counts_no_optimizer_state_and_no_tied_copy(tmp_path):
    weight = np.ones((4, 2), np.float32)
    tensors = {
        "model.embed_tokens.weight": weight,
        "lm_head.weight": weight,
        "__training__.optimizer.m.model.embed_tokens.weight": weight,
    }
    apr.save(tensors, tmp_path / "m.apr", {"tie_word_embeddings": True})
    found = apr.inspect(tmp_path / "m.apr")
    assert (found["kind"], found["param_count"], found["tensor_count"]) == ("checkpoint", 8, 3)


def test_inspect_for_people_is_whole_lines_in_a_pipe(run, tmp_path):
    apr.save({}, tmp_path / "m.apr", {"name": "a" * 60 + "end", "steer": "\x1b[31mred", "long": ["x"] * 1000})
    code, out, err = run("inspect", tmp_path / "m.apr")
    assert (code, err) == (0, "")
    assert "a" * 60 + "end" in out
    assert "\x1b" not in out
    assert "1000 items" in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_quick_leaves_out_the_bytes(run):
    found = json.loads(run("inspect", "--json", "--quick", QWEN)[1])
    assert (found["valid"], found["checksum_valid"]) == (True, None)


def test_tensors_lists_a_row_for_each(run):
    code, out, _ = run("tensors", "--json", QWEN)
    rows = json.loads(out)["tensors"]
    file = apr.load(QWEN)
    assert code == 0
    assert [row["name"] for row in rows] == list(file)
    for row in rows:
        info = file.info(row["name"])
        assert row == {
            "name": info.name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "nbytes": info.nbytes,
            "offset": info.offset,
        }


def test_tensors_are_filtered_by_a_glob_and_never_cut_in_a_pipe(run, tmp_path):
    name = "model.layers.0." + "x" * 200
    apr.save({name: np.ones(3), "other": np.ones(2)}, tmp_path / "m.apr")
    code, out, _ = run("tensors", tmp_path / "m.apr", "--filter", "*.layers.0.*")
    assert code == 0
    header, row = out.splitlines()
    assert header.split() == ["name", "dtype", "shape", "bytes", "offset"]
    assert row.split() == [name, "f64", "[3]", "24", str(apr.load(tmp_path / "m.apr").info(name).offset)]


def test_stats_are_of_the_finite_values(run, tmp_path):
    values = np.array([1, 2, 3, 6, np.nan, np.inf, -np.inf], np.float32)
    tensors = {
        "f": values,
        "i": np.array([-(2**63), 2**63 - 1]),
        "none": np.array([np.nan]),
        "z": np.ones((0, 2)),
    }
    apr.save(tensors, tmp_path / "m.apr")
    rows = json.loads(run("tensors", "--json", "--stats", tmp_path / "m.apr")[1])["tensors"]
    stats = {row["name"]: [row[key] for key in ("min", "max", "mean", "std", "nan", "inf")] for row in rows}
    assert stats["f"] == [1, 6, 3, pytest.approx(np.std([1, 2, 3, 6])), 1, 2]
    assert stats["i"][:2] == [-(2**63), 2**63 - 1]
    assert stats["none"] == [None, None, None, None, 1, 0]
    assert stats["z"] == [None, None, None, None, 0, 0]
    assert "-" in run("tensors", "--stats", tmp_path / "m.apr")[1]


def test_stats_of_quantized_and_long_tensors_are_numpys_own(run, tmp_path):
    values = np.random.default_rng(0).standard_normal(3_000_000, np.float32)
    apr.save({"long": values}, tmp_path / "m.apr")
    (row,) = json.loads(run("tensors", "--json", "--stats", tmp_path / "m.apr")[1])["tensors"]
    assert row["mean"] == pytest.approx(values.mean(dtype=np.float64), abs=1e-12)
    assert row["std"] == pytest.approx(values.std(dtype=np.float64))
    rows = json.loads(run("tensors", "--json", "--stats", DATA / "row_padded_k_quants.apr")[1])["tensors"]
    with apr.load(DATA / "row_padded_k_quants.apr") as file:
        for row in rows:
            assert row["max"] == file[row["name"]].max().item()


def test_verify_prints_every_check(run):
    code, out, err = run("verify", QWEN)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{QWEN}: ok"
    for check in ("magic", "header", "metadata", "tensor index", "tensor data", "footer"):
        assert f"ok  {check}" in out


def test_verify_of_several_files_exits_with_the_highest_code(run, tmp_path):
    good, flipped, bad, gone = QWEN, tmp_path / "flipped.apr", tmp_path / "bad.apr", tmp_path / "gone.apr"
    content = bytearray(QWEN.read_bytes())
    content[-100] ^= 1
    flipped.write_bytes(content)
    bad.write_bytes(b"GGUF")
    assert run("verify", good, gone)[0] == 3
    assert run("verify", gone, bad, good)[0] == 4
    code, out, err = run("verify", good, flipped, bad, gone)
    assert code == 5
    assert f"{good}: ok" in out
    assert f"{flipped}: FAILED" in out
    assert [line.split(": ")[2] for line in err.splitlines()] == [str(bad), str(gone)]
    code, out, _ = run("verify", "--json", good, flipped, bad, gone)
    found = json.loads(out)
    assert (code, found["ok"]) == (5, False)
    assert [(row["ok"], row["opened"]) for row in found["files"]] == [
        (True, True),
        (False, True),
        (False, False),
        (False, False),
    ]


def test_verify_without_a_file_is_wrong_usage(run):
    assert run("verify")[0] == 2


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_help_has_an_example(command, run):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: apr {command} " in out


def apr_in(environment, *arguments, **keywords):
    command = [sys.executable, "-m", "apr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, check=False, **keywords)


def test_what_standard_output_cannot_encode_is_escaped(tmp_path):
    apr.save({"ünï…": np.zeros(2)}, tmp_path / "m.apr", {"said": "ü" * 100})
    for command, shown in (("inspect", b"\\xfc"), ("tensors", b"\\xfcn\\xef\\u2026"), ("verify", b"ok")):
        done = apr_in({"PYTHONIOENCODING": "ascii"}, command, tmp_path / "m.apr")
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout
    assert apr_in({"PYTHONIOENCODING": "ascii"}).stdout.startswith(b"usage: apr ")


def test_a_closed_standard_output_is_no_error_of_ours():
    done = apr_in({}, "tensors", QWEN, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_name_cannot_steer_the_terminal(run, tmp_path):
    path = tmp_path / "\x1b[31mred.apr"
    apr.save({"a": np.zeros(2)}, path)
    damaged = tmp_path / "\x1b[32mgreen.apr"
    damaged.write_bytes(b"APR\0")
    for command in ("inspect", "verify", "tensors"):
        for given in (path, damaged):
            _, out, err = run(command, given)
            assert "\x1b" not in out + err
    _, out, _ = run("convert", path, tmp_path / "\x1b[31m.safetensors")
    assert "\\x1b[31m.safetensors" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("command", ["inspect", "tensors", "stamp", "convert", "diff"])
def test_a_refusal_is_json_too_where_json_is_asked_for(command, run, tmp_path):
    others = {"stamp": ["a=1", "-o", tmp_path / "b.apr"], "convert": [tmp_path / "b.apr"], "diff": [QWEN]}
    code, out, err = run(command, tmp_path / "gone.apr", *others.get(command, []), "--json")
    assert code == 3
    said = json.loads(out)
    assert said["exit_code"] == 3
    assert str(tmp_path / "gone.apr") in said["error"]
    assert said["error"] in err


def test_columns_are_aligned_whatever_their_number_and_width(run, tmp_path):
    names = ["a", "日本", "long.name"]
    apr.save({name: np.zeros(n + 1, "<f4") for n, name in enumerate(names)}, tmp_path / "m.apr")
    _, out, _ = run("tensors", tmp_path / "m.apr")
    heading, *rows = out.splitlines()
    assert heading.split() == ["name", "dtype", "shape", "bytes", "offset"]
    assert [row.split() for row in rows] == [
        [name, "f32", f"[{n + 1}]", str(4 * n + 4), str(apr.load(tmp_path / "m.apr").info(name).offset)]
        for n, name in sorted(enumerate(names), key=lambda pair: pair[1])
    ]
    from rich.cells import cell_len

    starts = {cell_len(row[: row.index("f32")]) for row in rows} | {heading.index("dtype")}
    ends = {cell_len(row) for row in rows} | {len(heading)}
    assert (len(starts), len(ends)) == (1, 1)


def test_many_tensors_are_listed_without_a_table_that_measures_each(run, tmp_path, monkeypatch):
    """rich takes a millisecond a row."""
    import rich.table

    apr.save({f"t{n:04}": np.zeros(1, "u1") for n in range(2000)}, tmp_path / "m.apr")
    monkeypatch.setattr(rich.table.Table, "add_row", lambda *_: pytest.fail("a row of a rich table"))
    code, out, _ = run("tensors", tmp_path / "m.apr")
    assert (code, len(out.splitlines())) == (0, 2001)

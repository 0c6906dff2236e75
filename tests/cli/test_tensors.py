"""apr tensors."""

import json

import numpy as np
import pytest
from tests.cli.test_inspect import DATA, QWEN

import apr


def test_json_has_a_row_for_each_tensor(run):
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


def test_filter_is_a_glob_and_long_names_are_not_cut_in_a_pipe(run, tmp_path):
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


def test_stats_of_quantized_and_long_tensors_match_numpy(run, tmp_path):
    values = np.random.default_rng(0).standard_normal(3_000_000, np.float32)
    apr.save({"long": values}, tmp_path / "m.apr")
    (row,) = json.loads(run("tensors", "--json", "--stats", tmp_path / "m.apr")[1])["tensors"]
    assert row["mean"] == pytest.approx(values.mean(dtype=np.float64), abs=1e-12)
    assert row["std"] == pytest.approx(values.std(dtype=np.float64))
    rows = json.loads(run("tensors", "--json", "--stats", DATA / "row_padded_k_quants.apr")[1])["tensors"]
    with apr.load(DATA / "row_padded_k_quants.apr") as file:
        for row in rows:
            assert row["max"] == file[row["name"]].max().item()


def test_columns_are_aligned(run, tmp_path):
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


def test_many_tensors_are_listed_without_a_rich_table(run, tmp_path, monkeypatch):
    """rich takes a millisecond a row."""
    import rich.table

    apr.save({f"t{n:04}": np.zeros(1, "u1") for n in range(2000)}, tmp_path / "m.apr")
    monkeypatch.setattr(rich.table.Table, "add_row", lambda *_: pytest.fail("a row of a rich table"))
    code, out, _ = run("tensors", tmp_path / "m.apr")
    assert (code, len(out.splitlines())) == (0, 2001)

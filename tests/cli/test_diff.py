"""apr diff."""

import json

import numpy as np

import apr


def test_differences_are_printed_and_exit_5(run, tmp_path):
    a, b = tmp_path / "a.apr", tmp_path / "b.apr"
    apr.save(
        {"gone": np.ones(1), "w": np.zeros(3, np.float32), "same": np.ones(2)}, a, {"x": 1, "long": "y" * 99}
    )
    apr.save(
        {"new\x1b": np.ones(1), "w": np.array([0, 0.5, 0], "f4"), "same": np.ones(2)}, b, {"z": [2], "x": 2}
    )
    code, out, err = run("diff", a, b)
    assert (code, err) == (5, "")
    assert out.splitlines()[1:] == [
        f'  - metadata long: "{"y" * 71}…',
        "  + metadata z: [2]",
        "  ~ metadata x: 1 -> 2",
        "  - tensor gone",
        "  + tensor new\\x1b",
        "  ~ tensor w: 1 of 3 values differ, by at most 0.5",
    ]
    code, out, _ = run("diff", a, b, "--json")
    assert code == 5
    assert json.loads(out) == json.loads(json.dumps(apr.diff(a, b).to_dict()))
    assert json.loads(out)["tensors"][0]["largest"] == 0.5


def test_equal_files_exit_0(run, tmp_path):
    a, b = tmp_path / "a.apr", tmp_path / "b.apr"
    apr.save({"w": np.zeros(3)}, a)
    apr.save({"w": np.full(3, 0.5)}, b)
    assert run("diff", a, a)[0] == 0
    assert run("diff", a, b, "--atol", "0.5")[0] == 0
    assert run("diff", a, b, "--atol", "0.49")[0] == 5
    assert run("diff", a, tmp_path / "gone.apr")[0] == 3
    b.write_bytes(b"GGUF" + bytes(99))
    assert run("diff", a, b)[0] == 4

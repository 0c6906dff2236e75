"""apr stamp."""

import json

import numpy as np
import pytest

import apr
from apr.cli import main


@pytest.fixture
def run(capfd):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def test_values_are_json_or_text(run, tmp_path):
    path, out = tmp_path / "m.apr", tmp_path / "out.apr"
    apr.save({"a": np.ones(3)}, path, {"old": 1, "gone": 2})
    given = [
        "layers=24",
        'tags=["a"]',
        "author=Ada B",
        'version="2"',
        "eq=a=b",
        "empty=",
        "nan=NaN",
        "gone=null",
    ]
    code, printed, err = run("stamp", path, *given, "-o", out)
    assert (code, err) == (0, "")
    assert str(out) in printed
    assert dict(apr.load(out).metadata) == {
        "old": 1,
        "layers": 24,
        "tags": ["a"],
        "author": "Ada B",
        "version": "2",
        "eq": "a=b",
        "empty": "",
        "nan": "NaN",
    }


def test_json_output_is_one_object(run, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({}, path)
    code, printed, _ = run("stamp", path, "a=1", "b=null", "-o", path, "--json")
    assert code == 0
    assert json.loads(printed) == {"file": str(path), "out": str(path), "set": {"a": 1}, "removed": ["b"]}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["m.apr", "a", "-o", "out.apr"], 2, "KEY=VALUE"),
        (["m.apr", "=1", "-o", "out.apr"], 2, "KEY=VALUE"),
        (["m.apr", "-o", "out.apr"], 2, ""),
        (["m.apr", "a=\udcff", "-o", "out.apr"], 2, "'a'"),
        (["m.apr", "a=1"], 2, ""),
        (["gone.apr", "a=1", "-o", "out.apr"], 3, "gone.apr"),
        (["bad.apr", "a=1", "-o", "out.apr"], 4, "bad.apr"),
    ],
)
def test_mistakes_print_one_line_and_exit_with_a_code(arguments, code, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    apr.save({}, "m.apr")
    (tmp_path / "bad.apr").write_bytes(b"GGUF" + bytes(100))
    exit_code, out, err = run("stamp", *arguments)
    assert (exit_code, out) == (code, "")
    assert says in err
    assert not (tmp_path / "out.apr").exists()

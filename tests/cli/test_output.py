"""What every command prints: escaped, aligned, and JSON alone where that is asked for."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.cli.test_inspect import QWEN

import apr


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_help_has_an_example(command, run):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: apr {command} " in out


def apr_in(environment, *arguments, **keywords):
    command = [sys.executable, "-m", "apr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, check=False, **keywords)


def test_characters_that_stdout_cannot_encode_are_escaped(tmp_path):
    apr.save({"ünï…": np.zeros(2)}, tmp_path / "m.apr", {"said": "ü" * 100})
    for command, shown in (("inspect", b"\\xfc"), ("tensors", b"\\xfcn\\xef\\u2026"), ("verify", b"ok")):
        done = apr_in({"PYTHONIOENCODING": "ascii"}, command, tmp_path / "m.apr")
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout
    assert apr_in({"PYTHONIOENCODING": "ascii"}).stdout.startswith(b"usage: apr ")


def test_a_closed_stdout_is_not_an_error():
    done = apr_in({}, "tensors", QWEN, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_control_characters_in_file_names_are_escaped(run, tmp_path):
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
def test_errors_are_json_with_json(command, run, tmp_path):
    others = {"stamp": ["a=1", "-o", tmp_path / "b.apr"], "convert": [tmp_path / "b.apr"], "diff": [QWEN]}
    code, out, err = run(command, tmp_path / "gone.apr", *others.get(command, []), "--json")
    assert code == 3
    report = json.loads(out)
    assert report["exit_code"] == 3
    assert str(tmp_path / "gone.apr") in report["error"]
    assert report["error"] in err

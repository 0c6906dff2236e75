"""A converted directory appears whole, is written by one conversion at a time, and replaces only a model."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from apr.cli import main
from apr.convert import ConvertOptions, convert
from apr.errors import RefusedError

MODEL = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "from_gguf_llama_tied.apr"
FORCE = ConvertOptions(force=True)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_of_two_conversions_at_once_the_second_is_refused(flags, tmp_path, capsys):
    convert(MODEL, tmp_path / "expected")
    halfway, go_on = threading.Event(), threading.Event()

    def slowly(_name, done, _total):
        if done == 10:
            halfway.set()
            assert go_on.wait(60)

    first = threading.Thread(target=lambda: convert(MODEL, tmp_path / "hf", FORCE, on_tensor=slowly))
    first.start()
    assert halfway.wait(60)
    command = [sys.executable, "-m", "apr", "convert", str(MODEL), str(tmp_path / "hf"), *flags]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    beside = main(["convert", str(MODEL), str(tmp_path / "hf"), *flags])  # in the same process too
    go_on.set()
    first.join()
    start = f"apr convert: error: {tmp_path / 'hf'}: "
    assert (second.returncode, beside) == (5, 5)
    for (line,) in (second.stderr.splitlines(), capsys.readouterr().err.splitlines()):
        assert line.startswith(start)
        assert "another conversion" in line
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / "hf" / path.name).read_bytes() == path.read_bytes()
    assert names(tmp_path) == ["expected", "hf"]


KILLED = """
import os, signal, sys
from pathlib import Path
from apr.cli import main
rename = Path.rename
def killed(path, new):
    if sys.argv[1] == "between" and path.name.startswith("new-"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(path, new)
    if sys.argv[1] == "after" and path.name.startswith("new-"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = killed
if sys.argv[1] == "writing":
    import apr.convert.to_safetensors
    apr.convert.to_safetensors.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(["convert", *sys.argv[2:], "--force"]))
"""


@pytest.mark.parametrize("moment", ["writing", "between", "after"])
def test_files_of_a_killed_conversion_are_restored_or_deleted_by_the_next(moment, tmp_path):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "config.json").write_text("before")
    done = subprocess.run([sys.executable, "-c", KILLED, moment, MODEL, target], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".hf.apr-convert"] + ["hf"] * (moment != "between")
    with pytest.raises(RefusedError, match="--force"):
        convert(MODEL, target)
        convert(MODEL, target)  # where nothing stood there the first looks for itself
    if moment != "after":
        assert (target / "config.json").read_text() == "before"
    convert(MODEL, target, FORCE)
    assert (target / "model.safetensors").exists()
    assert names(tmp_path) == ["hf"]


def test_force_replaces_only_a_model(tmp_path, capsys):
    target = tmp_path / "keep"
    convert(MODEL, target)
    (target / "sub").mkdir()
    (target / "thesis.txt").write_text("mine")
    for foreign in ("sub", "thesis.txt"):
        assert main(["convert", str(MODEL), str(target), "--force"]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{target}: " in line
        assert foreign in line
        if foreign == "sub":
            (target / "sub").rmdir()
    (target / "thesis.txt").rename(target / "epoch-001.apr")  # a checkpoint of a run
    with pytest.raises(RefusedError, match=r"epoch-001\.apr"):
        convert(MODEL, target, FORCE)
    assert (target / "epoch-001.apr").read_text() == "mine"
    (target / "epoch-001.apr").unlink()
    convert(MODEL, target, FORCE)
    assert names(tmp_path) == ["keep"]


def test_files_that_appear_in_the_target_meanwhile_are_not_replaced(tmp_path):
    target = tmp_path / "hf"
    convert(MODEL, target)

    def on_tensor(_name, done, _total):
        if done == 10:
            (target / "thesis.txt").write_text("mine")

    with pytest.raises(RefusedError, match=r"thesis\.txt"):
        convert(MODEL, target, FORCE, on_tensor=on_tensor)
    assert (target / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == ["hf"]


def test_files_of_others_beside_the_target_are_not_deleted(tmp_path):
    kept = [".hf.tmp", ".hf.old", ".hf.apr-convert"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"\.hf\.apr-convert: contains thesis\.txt"):
        convert(MODEL, tmp_path / "hf")
    (tmp_path / ".hf.apr-convert").rename(tmp_path / "elsewhere")
    (tmp_path / ".hf.apr-convert").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="contains"):
        convert(MODEL, tmp_path / "hf")
    (tmp_path / ".hf.apr-convert").unlink()
    convert(MODEL, tmp_path / "hf")
    convert(MODEL, tmp_path / "hf", FORCE)
    for name in (".hf.tmp", ".hf.old", "elsewhere"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_an_existing_directory_is_replaced_only_by_force_and_as_a_whole(tmp_path, monkeypatch):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "config.json").write_text("kept")
    (target / "vocab.txt").touch()
    model = MODEL
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


def test_a_link_stays_and_its_directory_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "model.safetensors").touch()
    convert(MODEL, tmp_path / "link", ConvertOptions(force=True))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]

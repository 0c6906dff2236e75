"""Conversions are complete or leave nothing, report progress, and need no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.convert.models import (
    IMPORTED,
)

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert, stream
from apr.errors import ChecksumError


def test_json_describes_what_was_written(tmp_path, capsys):
    assert main(["convert", str(IMPORTED / "hf_llama_tied"), str(tmp_path / "m.apr"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["size_bytes"] == (tmp_path / "m.apr").stat().st_size
    with apr.load(tmp_path / "m.apr") as file:
        assert report["tensors"] == len(file)
        assert report["param_count"] == sum(int(np.prod(file.info(name).shape)) for name in file)


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


@pytest.mark.parametrize("target", ["hf", "m.safetensors"])
def test_a_damaged_source_is_refused(target, tmp_path):
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    content = bytearray((tmp_path / "m.apr").read_bytes())
    content[-5000] ^= 1
    (tmp_path / "m.apr").write_bytes(content)
    with pytest.raises(ChecksumError):
        convert(tmp_path / "m.apr", tmp_path / target)
    assert not (tmp_path / target).exists()


def test_progress_is_reported_in_every_direction(tmp_path):
    calls = []

    def on_tensor(name, done, total):
        calls.append((name, done, total))

    for source, target in [
        (IMPORTED / "hf_llama_tied", "a.apr"),
        (IMPORTED / "llama_tied.gguf", "b.apr"),
        (tmp_path / "a.apr", "hf"),
        (tmp_path / "a.apr", "a.safetensors"),
        (tmp_path / "a.safetensors", "c.apr"),
    ]:
        calls.clear()
        convert(source, tmp_path / target, on_tensor=on_tensor)
        assert sorted(done for _, done, _ in calls) == list(range(20)), target
        assert {total for _, _, total in calls} == {20}


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "target", "flags"),
    [
        (IMPORTED / "hf_llama_tied", "a.apr", []),
        (IMPORTED / "llama_tied.gguf", "a.apr", []),
        (IMPORTED / "hf_llama_tied", "several", ["--max-shard-size", "100KB", "--force"]),
        (IMPORTED / "from_gguf_llama_tied.apr", "hf", ["--force"]),
        (IMPORTED / "from_gguf_llama_tied.apr", "a.safetensors", []),
    ],
)
def test_ctrl_c_leaves_the_earlier_target(source, target, flags, tmp_path, monkeypatch):
    arguments = ["convert", str(source), str(tmp_path / target), *flags]
    assert main(arguments) == 0
    before = files_of(tmp_path)
    stored, read = stream.TensorStream.byte_chunks, []

    def interrupted(item):
        read.append(item)
        if len(read) == 10:
            raise KeyboardInterrupt
        return stored(item)

    monkeypatch.setattr(stream.TensorStream, "byte_chunks", interrupted)
    assert main(arguments) == 130
    assert files_of(tmp_path) == before


def test_ctrl_c_between_two_renames_leaves_the_earlier_target(tmp_path, monkeypatch):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "config.json").write_text("kept")
    rename = Path.rename

    def interrupted(path, new):
        if path.name.startswith("new-"):
            raise KeyboardInterrupt
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(IMPORTED / "from_gguf_llama_tied.apr", target, ConvertOptions(force=True))
    assert (target / "config.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_full_disk_names_the_target_and_leaves_nothing(tmp_path):
    model, place = tmp_path / "model", tmp_path / "full"
    place.mkdir()
    apr.save({"w": np.ones(50_000, np.float32)}, model.with_suffix(".apr"))
    convert(model.with_suffix(".apr"), tmp_path / "w.safetensors")
    cases = [
        (model.with_suffix(".apr"), "m.safetensors", []),
        (tmp_path / "w.safetensors", "m.apr", []),
        (tmp_path / "w.safetensors", "several", ["--max-shard-size", "9GB"]),
    ]
    code = """
import resource, sys
from apr.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["convert", *sys.argv[1:]]))
"""
    for source, target, flags in cases:
        done = subprocess.run(
            [sys.executable, "-c", code, source, target, *flags],
            capture_output=True,
            text=True,
            cwd=place,
            check=False,
        )
        assert (done.returncode, done.stdout) == (7, "")
        named = place / target if flags else target
        assert done.stderr == f"apr convert: error: {named}: File too large\n"
        assert list(place.iterdir()) == []

"""Every file that the product writes is written as an .apr file is: whole, in place, under any legal name."""

import json
import os
import shutil
import socket
import stat
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.convert.models import IMPORTED

import apr
import apr.numpy
import apr.torch
from apr.convert import ConvertOptions, convert
from apr.files import write_atomically, write_json
from apr.report import write_report

ONE = {"a": np.ones(3)}


@cache
def source():
    """An .apr file of a model, outside of what a test looks at."""
    path = Path(tempfile.mkdtemp(prefix="apr-test-")) / "source.apr"
    convert(IMPORTED / "hf_llama_tied", path)
    return path


@pytest.fixture(scope="module", autouse=True)
def cleaned():
    yield
    shutil.rmtree(source().parent)
    source.cache_clear()


def converted(path, **options):
    convert(source(), path, ConvertOptions(**options))


def streamed(path):
    with apr.Writer(path) as writer:
        writer.add("a", np.ones(3))


def reported(path):
    run = source().parent / "run"
    run.mkdir(exist_ok=True)
    (run / "train.jsonl").write_text('{"step": 0, "train_loss": 1.0}')
    write_report(run, path)


# The end of the name, and what writes it.
OUTPUTS = {
    "save": (".apr", lambda path: apr.save(ONE, path)),
    "Writer": (".apr", streamed),
    "save_file": (".apr", lambda path: apr.torch.save_file({"a": torch.ones(3)}, path)),
    "save_model": (".apr", lambda path: apr.torch.save_model(torch.nn.Linear(1, 1), path)),
    "numpy.save_file": (".apr", lambda path: apr.numpy.save_file(ONE, path)),
    "stamp": (".apr", lambda path: apr.stamp(source(), {"k": 1}, path)),
    "convert to .apr": (".apr", converted),
    "convert to .safetensors": (".safetensors", converted),
    "convert to .gguf": (".gguf", lambda path: converted(path, check=False)),
    "write_report": (".html", reported),
    "JSON": (".json", lambda path: write_json(path, {"k": 1})),
    "bytes": (".png", lambda path: write_atomically(path, b"content")),
}


@pytest.fixture(params=OUTPUTS)
def output(request):
    return OUTPUTS[request.param]


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        # A path to bind is short.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL = {
    "a FIFO": (fifo, stat.S_ISFIFO),
    "a socket": (listening, stat.S_ISSOCK),
    "a link to a device": (lambda path: path.symlink_to("/dev/null"), stat.S_ISCHR),
    "a link to a FIFO": (lambda path: (fifo(path.parent / "fifo"), path.symlink_to("fifo")), stat.S_ISFIFO),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_not_a_regular_file_is_refused_and_stays(kind, output, tmp_path):
    end, write = output
    make, is_kind = SPECIAL[kind]
    path = tmp_path / f"out{end}"
    make(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="not a regular file"):
        write(path)
    assert is_kind(path.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_stays_and_what_it_points_to_is_replaced(output, tmp_path):
    end, write = output
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / f"out{end}"
    target.write_bytes(b"old")
    link.symlink_to("elsewhere/target")
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() not in {b"old", b""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", link.name]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_mode(mode, output, tmp_path):
    end, write = output
    path = tmp_path / f"out{end}"
    path.touch()
    path.chmod(mode)
    write(path)
    assert path.stat().st_mode & 0o777 == mode
    assert path.stat().st_size


@pytest.mark.parametrize(
    "part", ["a", "é", "\U0001f600", os.fsdecode(b"\xe9")], ids=["a", "é", "emoji", "latin-1"]
)
@pytest.mark.parametrize("length", [251, 255])
def test_names_of_up_to_255_bytes_are_written(length, part, output, tmp_path):
    end, write = output
    room = length - len(end)
    name = part * (room // len(os.fsencode(part)))
    path = tmp_path / f"{name}{'x' * (room - len(os.fsencode(name)))}{end}"
    assert len(os.fsencode(path.name)) == length
    for _ in range(2):  # a new file, and one that is replaced
        write(path)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert path.stat().st_size


@pytest.mark.parametrize("length", [200, 255])
def test_directories_of_long_names_are_written_and_replaced(length, tmp_path):
    apr.save({f"t{n}": np.ones(100) for n in range(3)}, tmp_path / "m.apr")
    target = tmp_path / ("é" * (length // 2) + "x" * (length % 2))
    options = ConvertOptions(max_shard_size=1000, force=True)
    for _ in range(2):
        convert(tmp_path / "m.apr", target, options)
        assert len(list(target.iterdir())) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m.apr", target.name])


def test_a_replaced_directory_and_its_files_keep_their_modes(tmp_path):
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    target = tmp_path / "model"
    convert(tmp_path / "m.apr", target)
    target.chmod(0o700)
    for path in target.iterdir():
        path.chmod(0o600)
    before = {path.name for path in target.iterdir()}
    convert(tmp_path / "m.apr", target, ConvertOptions(force=True))
    assert target.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()} == dict.fromkeys(
        before, 0o600
    )


def test_a_seal_is_written_as_every_file_is(tmp_path, run):
    directory = tmp_path / "model"
    apr_file = directory / "m.apr"
    directory.mkdir()
    apr.save(ONE, apr_file)
    seal = directory / "apr-seal.json"
    os.mkfifo(seal)
    for command in (["seal", directory], ["verify", seal]):
        code, _, err = run(*command)
        assert code == 4
        assert "not a regular file" in err
    seal.unlink()
    (tmp_path / "kept.json").write_text(json.dumps({"format": "apr-seal", "version": 1, "files": {}}))
    (tmp_path / "kept.json").chmod(0o600)
    seal.symlink_to("../kept.json")
    assert run("seal", directory)[0] == 0
    assert seal.is_symlink()
    assert "m.apr" in json.loads((tmp_path / "kept.json").read_text())["files"]
    assert (tmp_path / "kept.json").stat().st_mode & 0o777 == 0o600
    assert run("verify", directory)[0] == 0


def test_files_of_names_in_other_encodings_are_sealed_and_verified(tmp_path, run):
    name = os.fsdecode("modèle.apr".encode("latin-1"))
    apr.save(ONE, tmp_path / name)
    assert run("seal", tmp_path)[0] == 0
    assert run("verify", tmp_path)[0] == 0
    assert run("verify", tmp_path / name)[0] == 0
    content = bytearray((tmp_path / name).read_bytes())
    content[-80] ^= 1
    (tmp_path / name).write_bytes(content)
    assert run("verify", tmp_path)[0] == 5


def test_a_directory_of_a_name_in_another_encoding_is_converted(tmp_path, run):
    source = tmp_path / os.fsdecode("modèle".encode("latin-1"))
    shutil.copytree(IMPORTED / "hf_llama_tied", source)
    code, _, err = run("convert", source, tmp_path / "m.apr")
    assert (code, err) == (0, "")
    assert apr.load(tmp_path / "m.apr").metadata["name"] == "mod\ufffdle"
    code, _, err = run("convert", tmp_path / "m.apr", tmp_path / os.fsdecode(b"\xe9\xe8"))
    assert (code, err) == (0, "")


def test_a_run_directory_of_a_long_name_is_moved_away(tmp_path):
    from apr.train.rundir import move_away

    names = set()
    for _ in range(2):
        path = tmp_path / ("é" * 127)
        path.mkdir()
        names.add(move_away(path).name)
    assert len(names) == 2
    assert all(len(os.fsencode(name)) <= 255 for name in names)

"""Which directories are lists of shards, and which file is named if one is not."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from tests.data.directories import write_shard

from apr.cli import main
from apr.data.listing import list_shards
from apr.errors import RefusedError


def add_empty(directory, name="shard-00003.bin"):
    (directory / name).write_bytes(b"")


def tear(directory, name="shard-00002.bin"):
    with (directory / name).open("ab") as file:
        file.write(b"\x01\x02\x03")


def replace_with(make):
    def change(directory):
        path = directory / "shard-00001.bin"
        path.unlink()
        make(path)

    return change


def bind_socket(path):
    before = Path.cwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(before)


BROKEN = [
    pytest.param(add_empty, "shard-00003.bin", id="empty at the end"),
    pytest.param(lambda d: add_empty(d, "shard-00001.bin"), "shard-00001.bin", id="empty"),
    pytest.param(tear, "shard-00002.bin", id="torn at the end"),
    pytest.param(lambda d: tear(d, "shard-00000.bin"), "shard-00000.bin", id="torn"),
    pytest.param(lambda d: (d / "shard-00001.bin").unlink(), "number 1", id="gap"),
    pytest.param(lambda d: (d / "shard-00000.bin").unlink(), "number 0", id="first missing"),
    pytest.param(
        lambda d: (d / "shard-00002.bin").rename(d / "shard-0002.bin"), "shard-0002.bin", id="other width"
    ),
    pytest.param(lambda d: (d / "data.bin").write_bytes(bytes(4)), "data.bin", id="other name"),
    pytest.param(
        replace_with(lambda path: path.symlink_to(path.with_name("shard-00000.bin"))),
        "shard-00001.bin",
        id="link",
    ),
    pytest.param(replace_with(Path.mkdir), "shard-00001.bin", id="directory"),
    pytest.param(replace_with(bind_socket), "shard-00001.bin", id="socket"),
    pytest.param(replace_with(os.mkfifo), "shard-00001.bin", id="pipe"),
]


@pytest.mark.parametrize(("change", "names"), BROKEN)
def test_an_invalid_directory_is_refused_with_the_file(change, names, directory):
    change(directory)
    with pytest.raises(RefusedError, match=names):
        list_shards(directory)


@pytest.mark.parametrize(("change", "names"), BROKEN)
@pytest.mark.parametrize("flags", [[], ["--verify"], ["--force"]])
def test_an_invalid_directory_gets_no_manifest(change, names, flags, directory, capsys):
    change(directory)
    assert main(["repair-manifest", str(directory), *flags]) == 5
    error = capsys.readouterr().err
    assert names in error
    assert len(error.splitlines()) == 1
    assert not (directory / "manifest.json").exists()


def test_a_missing_directory_and_one_without_shards_are_refused(tmp_path, capsys):
    assert main(["repair-manifest", str(tmp_path / "gone")]) == 3
    (tmp_path / "file").write_text("")
    assert main(["repair-manifest", str(tmp_path / "file")]) == 3
    (tmp_path / "nothing").mkdir()
    assert main(["repair-manifest", str(tmp_path / "nothing")]) == 5
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_shards_are_listed_in_stream_order(directory):
    assert [(s.name, s.tokens) for s in list_shards(directory)] == [
        ("shard-00000.bin", 300),
        ("shard-00001.bin", 400),
        ("shard-00002.bin", 150),
    ]


@pytest.mark.parametrize("digits", [4, 5, 6])
def test_numbers_may_have_four_to_six_digits(digits, tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"shard-{number:0{digits}d}.bin", np.arange(number + 1))
    assert [shard.tokens for shard in list_shards(tmp_path)] == [1, 2, 3]

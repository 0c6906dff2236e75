"""Torn and empty shards: what a repair cuts and moves aside, and what it refuses."""

import json

import numpy as np
import pytest
from tests.data.directories import file_bytes, write_shard
from tests.data.test_listing import add_empty, tear

from apr.cli import main
from apr.data import ShardDir, repair
from apr.errors import RefusedError


def test_empty_shards_at_the_end_are_moved_aside_with_the_flag(directory, capsys):
    add_empty(directory)
    add_empty(directory, "shard-00004.bin")
    assert main(["repair-manifest", str(directory)]) == 5
    assert "--drop-empty" in capsys.readouterr().err
    report = repair(directory, drop_empty=True)
    assert len(report.done) == 2
    assert (directory / "shard-00003.bin.empty").exists()
    assert ShardDir(directory).total_tokens == 850


def test_an_empty_shard_between_others_is_never_moved(directory):
    add_empty(directory, "shard-00001.bin")
    with pytest.raises(RefusedError, match=r"shard-00001\.bin.*between"):
        repair(directory, drop_empty=True)


def test_a_directory_of_empty_shards_is_refused(tmp_path):
    add_empty(tmp_path, "shard-00000.bin")
    with pytest.raises(RefusedError, match=r"shard-00000\.bin"):
        repair(tmp_path, drop_empty=True)


def test_a_torn_last_shard_is_cut_with_the_flag_and_the_rest_is_kept(directory, capsys):
    whole = (directory / "shard-00002.bin").read_bytes()
    tear(directory)
    assert main(["repair-manifest", str(directory)]) == 5
    error = capsys.readouterr().err
    assert "byte 600 of 603" in error
    assert "--truncate-torn" in error
    repair(directory, truncate_torn=True)
    assert (directory / "shard-00002.bin").read_bytes() == whole
    assert (directory / "shard-00002.bin.torn").read_bytes() == b"\x01\x02\x03"
    assert ShardDir(directory).total_tokens == 850


def test_a_torn_shard_before_the_last_is_never_cut(directory):
    tear(directory, "shard-00000.bin")
    with pytest.raises(RefusedError, match=r"shard-00000\.bin.*last"):
        repair(directory, truncate_torn=True)


def test_a_shard_shorter_than_one_id_is_cut_and_moved_aside(directory):
    (directory / "shard-00003.bin").write_bytes(b"\x07\x08")
    repair(directory, truncate_torn=True, drop_empty=True)
    assert (directory / "shard-00003.bin.torn").read_bytes() == b"\x07\x08"
    assert ShardDir(directory).total_tokens == 850


@pytest.mark.parametrize("change", [add_empty, tear])
def test_a_failed_verify_neither_cuts_nor_moves(change, directory, capsys):
    for shard in directory.glob("*.bin"):
        write_shard(shard, np.zeros(100))
    change(directory)
    before = file_bytes(directory)
    flags = ["repair-manifest", str(directory), "--verify", "--drop-empty", "--truncate-torn"]
    assert main([*flags, "--json"]) == 5
    assert file_bytes(directory) == before
    assert json.loads(capsys.readouterr().out)["done"] == []


def test_the_scan_of_a_cut_shard_is_used_again(directory, monkeypatch):
    tear(directory)
    repair(directory, verify=True, truncate_torn=True)
    shards = ShardDir(directory)
    monkeypatch.setattr("apr.data.shards.scan_shards", None)
    assert shards.scan().total_tokens == 850

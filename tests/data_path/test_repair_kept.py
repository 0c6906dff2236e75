"""Writers of one name at once, and what is said of ids that are none."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from apr.cli import main
from apr.data import ShardDir, repair
from apr.data.claim import claimed
from apr.data.missing_manifest import write_missing_manifest
from apr.files import write_atomically


@pytest.fixture
def directory(tmp_path):
    """Three shards of text-like ids below 512, without a manifest."""
    path = tmp_path / "shards"
    path.mkdir()
    ids = np.random.default_rng(0).zipf(1.3, 850) % 511 + 1
    for i, part in enumerate(np.split(ids, (300, 700))):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    return path


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def manifest(directory):
    return json.loads((directory / "manifest.json").read_bytes())


def edit(directory, **changes):
    (directory / "manifest.json").write_text(json.dumps(manifest(directory) | changes))


def test_shards_of_the_other_byte_order_get_a_verdict(directory, capsys):
    for path in directory.glob("*.bin"):
        ids = np.fromfile(path, "<u4")
        (ids | 256).byteswap().tofile(path)
    before = files(directory)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    said = capsys.readouterr()
    assert "NOT fit to train on" in said.out
    assert "no id is one that a vocabulary has" in said.err
    assert "shard-00000.bin: id " in said.err
    assert files(directory) == before


def test_a_scan_without_its_most_frequent_ids_is_made_anew(directory):
    repair(directory, verify=True)
    edit(directory, scan=manifest(directory)["scan"] | {"most_frequent": []})
    assert ShardDir(directory).scan().most_frequent
    assert manifest(directory)["scan"]["most_frequent"]


def test_runs_that_start_at_once_all_read_shards_that_nobody_scanned(directory):
    repair(directory)
    opened = [ShardDir(directory) for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(ShardDir.scan, opened))
    assert len({scan.corpus_sha256 for scan in scans}) == 1
    assert manifest(directory)["scan"]["shards"]


def test_writers_of_one_name_wait_for_each_other_and_a_leftover_is_taken_over(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.tmp").write_bytes(b"left by a process that was killed" * 100)
    contents = [bytes([65 + n % 26]) * (1000 + n) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_scan_that_cannot_be_kept_is_made_all_the_same(directory, monkeypatch):
    repair(directory)
    before = files(directory)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("apr.files.os.fsync", full)
    assert ShardDir(directory).scan().corpus_sha256
    assert files(directory) == before


def test_where_an_encoding_is_writing_nothing_is_repaired(directory, capsys):
    before = files(directory)
    with claimed(directory):
        assert write_missing_manifest([str(directory)]) is None
        assert main(["repair-manifest", str(directory)]) == 5
        assert "is writing here: wait for it" in capsys.readouterr().err
        assert main(["repair-manifest", str(directory), "--dry-run"]) == 0
    assert files(directory) == before
    assert write_missing_manifest([str(directory)]) is not None
    assert main(["repair-manifest", str(directory / "none")]) == 3
    assert not (directory / "none").exists()

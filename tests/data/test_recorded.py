"""Hashes that a manifest records: a first reader compares them, names the shard, and writes nothing."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from tests.data.directories import TOKENIZER, edit_json, file_bytes, read_json

from apr.cli import main
from apr.data import Loader, ShardDir, Windows, repair
from apr.errors import AprError, RefusedError


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_hashes(directory):
    """Record the hash of each shard, as its encoder does."""
    rows = [
        {"name": path.name, "tokens": path.stat().st_size // 4, "sha256": sha256(path)}
        for path in sorted(directory.glob("*.bin"))
    ]
    edit_json(directory, shards=rows)


def record_one_hash(directory):
    """Record one hash of all shards together, as other encoders do."""
    digests = "".join(sha256(path) for path in sorted(directory.glob("*.bin")))
    edit_json(directory, corpus_sha256=hashlib.sha256(digests.encode()).hexdigest())


def keep_scan(directory):
    ShardDir(directory).scan()


def flip(path):
    content = bytearray(path.read_bytes())
    content[401] ^= 1
    path.write_bytes(content)


def flip_unseen(path):
    """Change a byte, and set the time back."""
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_in_a_copy(path):
    """Replace the shard by a copy of the same size and time, as a synchronization does."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    flip_unseen(copy)
    copy.rename(path)


def swap(path):
    """Exchange the contents of two shards of the same size."""
    first, second = path.with_name("shard-00000.bin"), path
    size = min(first.stat().st_size, second.stat().st_size)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two[:size] + one[size:])
    second.write_bytes(one[:size] + two[size:])


def scan(directory):
    ShardDir(directory).scan()


def read(directory):
    ShardDir(directory).read(305, 10)


def gather(directory):
    ShardDir(directory).gather([0, 290], np.empty((2, 20), np.uint32))


def load(directory):
    next(Loader(Windows(ShardDir(directory), 8), 2))


def decode(directory):
    assert main(["tokenize", "decode", str(directory), "--tokenizer", str(TOKENIZER), "--start", "305"]) == 5
    raise RefusedError("shard-00001.bin")  # its message is on the standard error


@pytest.mark.parametrize("record", [record_hashes, keep_scan])
@pytest.mark.parametrize("damage", [flip, flip_unseen, flip_in_a_copy, swap])
@pytest.mark.parametrize("reader", [scan, read, gather, load, decode])
def test_a_damaged_shard_is_named_and_nothing_is_written(directory, record, damage, reader, capsys):
    repair(directory)
    record(directory)
    damage(directory / "shard-00001.bin")
    before = file_bytes(directory)
    name = r"shard-0000[01]\.bin" if damage is swap else r"shard-00001\.bin"
    with pytest.raises(RefusedError, match=name):
        reader(directory)
    assert file_bytes(directory) == before
    if reader is decode:
        assert "shard-0000" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip, flip_unseen, swap])
@pytest.mark.parametrize("reader", [scan, load])
def test_one_hash_of_all_shards_is_compared(directory, damage, reader):
    repair(directory)
    record_one_hash(directory)
    scan(directory)
    damage(directory / "shard-00001.bin")
    before = file_bytes(directory)
    with pytest.raises(RefusedError, match="changed"):
        reader(directory)
    assert file_bytes(directory) == before


def test_a_scan_of_a_damaged_shard_beside_its_hash_is_not_believed(directory):
    """Earlier versions kept such scans."""
    repair(directory)
    record_hashes(directory)
    rows = read_json(directory)["shards"]
    flip(directory / "shard-00002.bin")
    repair(directory, force=True)
    edit_json(directory, shards=[])
    keep_scan(directory)
    edit_json(directory, shards=rows)
    for reader in (scan, lambda path: ShardDir(path).read(705, 1)):
        with pytest.raises(RefusedError, match=r"shard-00002\.bin"):
            reader(directory)


@pytest.mark.parametrize("size", [-4, 4, -400])
def test_a_shard_of_another_size_is_named(directory, size):
    repair(directory)
    record_hashes(directory)
    path = directory / "shard-00001.bin"
    os.truncate(path, path.stat().st_size + size)
    before = file_bytes(directory)
    with pytest.raises((RefusedError, AprError), match=r"shard-00001\.bin"):
        ShardDir(directory)
    assert file_bytes(directory) == before


def test_shards_without_a_hash_are_read_as_they_are(directory):
    repair(directory)
    flip(directory / "shard-00001.bin")
    ids = np.fromfile(directory / "shard-00001.bin", "<u4")
    assert np.array_equal(ShardDir(directory).read(300, 400), ids)


def test_shards_that_are_not_read_are_not_opened(directory):
    repair(directory)
    record_hashes(directory)
    (directory / "shard-00002.bin").chmod(0)
    flip(directory / "shard-00002.bin")
    shards = ShardDir(directory)
    ids = np.fromfile(directory / "shard-00000.bin", "<u4")
    assert np.array_equal(shards.read(0, 300), ids)


def test_a_copy_of_a_directory_is_hashed_again_and_is_the_same(directory, tmp_path):
    repair(directory)
    keep_scan(directory)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert ShardDir(copy).scan().corpus_sha256 == ShardDir(directory).scan().corpus_sha256


def test_verify_finds_what_only_a_scan_had_seen_and_force_accepts_it(directory, capsys):
    repair(directory)
    keep_scan(directory)
    flip(directory / "shard-00001.bin")
    before = file_bytes(directory)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    assert "shard-00001.bin" in capsys.readouterr().err
    assert file_bytes(directory) == before
    assert main(["repair-manifest", str(directory), "--verify", "--force"]) == 0
    assert ShardDir(directory).scan().shards[1].sha256 == sha256(directory / "shard-00001.bin")


@pytest.fixture
def encoded(tmp_path):
    """A complete encoding of several shards, with the flags that made it."""
    corpus = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"content": f"Document {i} says {i * i} and more."}) for i in range(200))
    corpus.write_text("\n".join(lines))
    output = tmp_path / "encoded"
    flags = ["tokenize", "encode", "--corpus", str(corpus), "--tokenizer", str(TOKENIZER)]
    flags += ["--output", str(output), "--shard-tokens", "1000"]
    assert main(flags) == 0
    return output, flags


@pytest.mark.parametrize("damage", [flip, flip_unseen])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_resumed_encoding_that_is_complete_names_a_damaged_shard(encoded, damage, scanned, capsys):
    output, flags = encoded
    if scanned:
        keep_scan(output)
    assert main([*flags, "--resume"]) == 0
    damage(output / "shard-00001.bin")
    before = file_bytes(output)
    assert main([*flags, "--resume"]) == 5
    assert "shard-00001.bin" in capsys.readouterr().err
    assert file_bytes(output) == before

"""`manifest.json`: reading, writing, and where it disagrees with the files."""

import json

import pytest
from tests.killing import disk_full

from apr.data.listing import Shard
from apr.data.manifest import (
    MANIFEST,
    SCHEMA,
    ManifestWriter,
    check_manifest,
    read_manifest,
    write_manifest,
)
from apr.errors import FormatError

SOUND = {"schema": SCHEMA, "shard_count": 2, "total_tokens": 30, "unknown": {"kept": [1]}}


@pytest.fixture
def shards(tmp_path):
    return [Shard(f"shard-{i:05d}.bin", tmp_path, n) for i, n in enumerate((10, 20))]


def test_unknown_keys_and_their_order_are_kept(tmp_path):
    write_manifest(tmp_path, SOUND)
    assert list(read_manifest(tmp_path).items()) == list(SOUND.items())
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    write_manifest(tmp_path, SOUND)

    with disk_full(), pytest.raises(OSError, match="manifest"):
        write_manifest(tmp_path, SOUND | {"shard_count": 3})
    assert read_manifest(tmp_path) == SOUND
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_missing_manifest_names_the_command_that_rebuilds_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="repair-manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3", b"[" * 100_000])
def test_anything_but_a_json_object_is_refused(content, tmp_path):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(FormatError, match=r"manifest\.json.*JSON"):
        read_manifest(tmp_path)


def test_a_manifest_that_agrees_has_no_problems(shards):
    assert check_manifest(SOUND, shards) == []
    rows = [{"name": shard.name, "tokens": shard.tokens} for shard in shards]
    assert check_manifest(SOUND | {"shards": rows}, shards) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "pretokenize-bin-v2"}, ["schema is 'pretokenize-bin-v2'"]),
        ({"schema": None}, ["schema is None"]),
        ({"shard_count": 3}, ["shard_count is 3"]),
        ({"shard_count": 2.0}, ["shard_count is 2.0"]),
        ({"total_tokens": True}, ["total_tokens is True"]),
        ({"shard_count": 1, "total_tokens": 10}, ["shard_count", "total_tokens"]),
        ({"shards": [{"name": "shard-00000.bin", "tokens": 11}]}, ["00000.bin", "00001.bin"]),
        ({"shards": [{"name": "shard-00000.bin", "tokens": 10, "sha256": 3}]}, ["sha256"]),
        ({"complete": "yes"}, ["complete is 'yes'"]),
    ],
)
def test_each_field_that_disagrees_is_named(change, says, shards):
    found = check_manifest(json.loads(json.dumps(SOUND | change)), shards)
    assert len(found) == len(says)
    for line, expected in zip(found, says, strict=True):
        assert expected in line


@pytest.mark.parametrize(
    "change",
    [
        {"complete": None, "vocab_size": None, "eos_token_id": None, "shards": None},
        {"shards": ["shard-00000.bin", "shard-00001.bin"]},
        {"shards": [{"path": "shard-00000.bin"}]},
        {"shards": [{"name": ["a"], "tokens": 3}]},
        {"shards": {"shard-00000.bin": 10}},
        {"shards": 3},
    ],
)
def test_null_and_the_values_of_other_producers_are_accepted(change, shards):
    assert check_manifest(SOUND | change, shards) == []


def test_a_missing_required_key_is_named(shards):
    assert "shard_count is missing" in check_manifest({}, shards)[1]


def test_a_manifest_that_grows_is_what_json_writes(tmp_path):
    writer = ManifestWriter(tmp_path)
    rows = []
    for n in range(4):
        # A value that looks like the key: its line break is escaped.
        manifest = {"schema": SCHEMA, "note": '\n  "shards": []', "shards": list(rows), "progress": {"n": n}}
        writer.write(manifest, rows)
        assert (tmp_path / "manifest.json").read_text() == json.dumps(manifest, indent=2) + "\n"
        rows.append({"name": f"shard-{n:05}.bin", "tokens": n, "sha256": None if n % 2 else "é" * n})

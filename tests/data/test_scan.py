"""The summary of all ids, and when the one in the manifest is used again."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.data.directories import edit_json, file_bytes, read_json
from tests.killing import disk_full

from apr.data import ShardDir, repair
from apr.data.listing import list_shards
from apr.data.scan import Scan, scan_shards


@pytest.fixture
def scanned(directory):
    """Three shards with a manifest that keeps their scan."""
    repair(directory, verify=True)
    return directory


def forbid_scanning(monkeypatch):
    monkeypatch.setattr("apr.data.shards.scan_shards", None)


def test_a_kept_scan_is_used_again(scanned, monkeypatch):
    forbid_scanning(monkeypatch)
    assert ShardDir(scanned).scan().total_tokens == 850


def test_the_digest_covers_the_canonical_json_of_the_scan(scanned):
    manifest = read_json(scanned)
    canonical = json.dumps(manifest["scan"], sort_keys=True, separators=(",", ":"))
    assert manifest["scan_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_reformatted_manifest_keeps_its_scan(scanned, monkeypatch):
    manifest = read_json(scanned)
    (scanned / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=7))
    forbid_scanning(monkeypatch)
    assert ShardDir(scanned).scan().total_tokens == 850


@pytest.mark.parametrize(
    "change", [{"total_tokens": 0}, {"entropy_bits": 1.0}, {"most_frequent": []}, {"shards": 5}], ids=str
)
def test_an_edited_scan_is_replaced(scanned, change):
    manifest = read_json(scanned)
    edit_json(scanned, scan=manifest["scan"] | change)
    assert Scan.from_manifest(read_json(scanned)) is None
    ShardDir(scanned).scan()
    assert read_json(scanned) == manifest


def test_a_scan_of_an_older_version_is_replaced(scanned):
    """Older versions recorded no digest."""
    manifest = read_json(scanned)
    older = {key: value for key, value in manifest.items() if key != "scan_sha256"}
    (scanned / "manifest.json").write_text(json.dumps(older))
    ShardDir(scanned).scan()
    assert read_json(scanned) == manifest


def test_a_scan_with_the_fields_of_another_version_is_replaced(scanned):
    manifest = read_json(scanned)
    row = manifest["scan"] | {"new_field": 1}
    canonical = json.dumps(row, sort_keys=True, separators=(",", ":"))
    edit_json(scanned, scan=row, scan_sha256=hashlib.sha256(canonical.encode()).hexdigest())
    ShardDir(scanned).scan()
    assert read_json(scanned) == manifest


def test_a_scan_is_made_again_if_a_shard_was_touched(scanned):
    before = read_json(scanned)
    os.utime(scanned / "shard-00001.bin", ns=(1, 1))
    ShardDir(scanned).scan()
    after = read_json(scanned)
    assert after["scan"]["shards"][1]["mtime_ns"] == 1
    times = {"mtime_ns": 0, "ctime_ns": 0}
    rows = [[row | times for row in made["scan"]["shards"]] for made in (before, after)]
    assert rows[0] == rows[1]


def test_a_scan_that_cannot_be_kept_is_returned(directory):
    repair(directory)
    before = file_bytes(directory)

    with disk_full():
        assert ShardDir(directory).scan().corpus_sha256
    assert file_bytes(directory) == before


def test_runs_that_start_together_can_all_scan(directory):
    repair(directory)
    opened = [ShardDir(directory) for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(ShardDir.scan, opened))
    assert len({scan.corpus_sha256 for scan in scans}) == 1
    assert read_json(directory)["scan"]["shards"]


def test_a_scan_equals_numpy_and_hashlib(directory):
    scan = scan_shards(list_shards(directory))
    shards = [np.fromfile(path, "<u4") for path in sorted(directory.glob("*.bin"))]
    assert [shard.max_id for shard in scan.shards] == [int(ids.max()) for ids in shards]
    assert [s.sha256 for s in scan.shards] == [hashlib.sha256(ids.tobytes()).hexdigest() for ids in shards]
    values, counts = np.unique(np.concatenate(shards), return_counts=True)
    by_count = sorted(zip(counts.tolist(), values.tolist(), strict=True), reverse=True)
    assert len(by_count) > 100
    assert scan.most_frequent == tuple((token, count) for count, token in by_count[:100])
    shares = counts / counts.sum()
    assert scan.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())
    assert scan.distinct_ids == len(values)


def test_a_scan_without_hashes_equals_one_with_hashes_otherwise(directory):
    hashed, plain = (scan_shards(list_shards(directory), hashes=hashes) for hashes in (True, False))
    assert (plain.counts == hashed.counts).all()
    assert [shard.max_id for shard in plain.shards] == [shard.max_id for shard in hashed.shards]
    assert {shard.sha256 for shard in plain.shards} == {None}
    assert plain.corpus_sha256 is None

"""apr.stamp: other metadata around the same tensors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from tests.properties.test_container import METADATA, TENSORS

import apr

DATA = Path(__file__).parents[1] / "fixtures"


def opens(path):
    try:
        apr.load(path).close()
    except apr.AprError:
        return False
    return True


def is_v2(path):
    return opens(path) and apr.load(path).header.version[0] == 2


V2 = [path for path in sorted(DATA.rglob("*.apr")) if is_v2(path)]


@given(TENSORS, METADATA, METADATA)
def test_every_bit_of_every_tensor_stays(tmp_path, tensors, metadata, changes):
    path, out = tmp_path / "m.apr", tmp_path / "out.apr"
    apr.save(tensors, path, metadata)
    apr.stamp(path, changes, out)
    wanted = {
        key: value for key, value in (metadata | changes).items() if value is not None or key in metadata
    }
    wanted = {key: value for key, value in wanted.items() if key not in changes or value is not None}
    with apr.load(path) as before, apr.load(out, verify="full") as after:
        assert list(before) == list(after)
        assert all(before.raw(name) == after.raw(name) for name in before)
        assert json.dumps(after.metadata) == json.dumps(wanted)
    apr.save(tensors, path, wanted)
    assert path.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("path", V2, ids=lambda path: path.name)
def test_files_of_the_ecosystem_keep_order_sizes_and_flags(path, tmp_path):
    out = tmp_path / "out.apr"
    apr.stamp(path, {"stamped": [1, {"a": None}]}, out)
    with apr.load(path) as before, apr.load(out, verify="full") as after:
        assert dict(after.metadata) == dict(before.metadata) | {"stamped": [1, {"a": None}]}
        start = after.header.data_offset - before.header.data_offset
        for name in before:
            old, new = before.info(name), after.info(name)
            assert (old.dtype, old.shape, old.nbytes) == (new.dtype, new.shape, new.nbytes)
            assert old.offset + start == new.offset
            assert before.raw(name) == after.raw(name)
        changed = {flag.name for flag in before.header.flags ^ after.header.flags}
        assert changed <= {"LZ4_COMPRESSED", "LAYOUT_ROW_MAJOR", "QUANTIZED", "HAS_VOCAB"}
        assert not any(flag.name == "LZ4_COMPRESSED" for flag in after.header.flags)
        assert after.footer is not None


def test_a_key_keeps_its_place_and_none_removes_it(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.ones(3)}, path, {"x": 1, "y": None, "z": 3, "sharding": {"shard_count": 1}})
    apr.stamp(path, {"z": 4, "w": 5, "x": None, "gone": None, "sharding": None}, path)
    file = apr.load(path, verify="full")
    assert list(file.metadata.items()) == [("y", None), ("z", 4), ("w", 5)]
    assert "SHARDED" not in {flag.name for flag in file.header.flags}
    apr.stamp(path, {"sharding": {"shard_count": 1, "shard_index": 0}}, path)
    assert "SHARDED" in {flag.name for flag in apr.load(path).header.flags}
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]


def test_unrelated_flags_stay(tmp_path):
    from tests.container.forged import Entry, forge

    kept = 1 << 4 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14
    (tmp_path / "m.apr").write_bytes(forge(Entry(), flags=kept | 1 | 2))
    apr.stamp(tmp_path / "m.apr", {"a": 1}, tmp_path / "out.apr")
    assert int(apr.load(tmp_path / "out.apr").header.flags) == kept


def test_a_damaged_source_is_not_copied(tmp_path):
    path, out = tmp_path / "m.apr", tmp_path / "out.apr"
    apr.save({"a": np.arange(100_000.0)}, path)
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    out.write_bytes(b"old")
    for target in (out, path):
        with pytest.raises(apr.ChecksumError, match=r"m\.apr.*checksum"):
            apr.stamp(path, {"a": 1}, target)
    assert out.read_bytes() == b"old"
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({1: 2}, TypeError, "1"),
        ({1: None}, TypeError, "1"),
        ({"a": object()}, TypeError, "'a'"),
        ({"a": float("inf")}, ValueError, "'a'"),
        ({"a": "x" * (16 << 20)}, apr.AprError, "16 MiB"),
    ],
)
def test_invalid_changes_are_refused_and_leave_the_file_unchanged(changes, error, says, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.ones(3)}, path)
    old = path.read_bytes()
    with pytest.raises(error, match=says):
        apr.stamp(path, changes, path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]


def test_errors_name_the_file_at_fault(tmp_path):
    apr.save({}, tmp_path / "m.apr")
    with pytest.raises(FileNotFoundError, match=r"gone\.apr"):
        apr.stamp(tmp_path / "gone.apr", {}, tmp_path / "m.apr")
    with pytest.raises(FileNotFoundError, match=r"nowhere/m\.apr"):
        apr.stamp(tmp_path / "m.apr", {}, tmp_path / "nowhere" / "m.apr")


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.zeros(50 << 20, np.uint8)}, path)
    code = """
import resource, sys, apr
from apr.container.stamp import stamp
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
stamp(sys.argv[1], {"a": 1}, sys.argv[1])
print((peak() - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert int(done.stdout) < 8 << 20

"""`apr.testing`: its files are what it says, so that a test that uses them tests what it means to."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import apr
from apr.data import ShardDir
from apr.testing import apr_files, damaged_files, names, shard_directories, tensors, with_right_checksums


@given(apr_files())
def test_files_are_sound(path):
    assert apr.verify(path).ok
    with apr.load(path, verify="full") as file:
        json.dumps(file.metadata)
        for name in file:
            assert file.info(name).shape == tuple(file[name].shape)


@given(damaged_files())
def test_no_damaged_file_passes(damaged):
    assert damaged.damage
    assert not apr.verify(damaged.path).ok
    with pytest.raises(apr.AprError):
        apr.load(damaged.path, verify="full")


def test_every_kind_of_damage_is_drawn():
    seen = []

    @given(damaged_files())
    @settings(max_examples=150, phases=[Phase.generate], derandomize=True)
    def draw(damaged):
        seen.append(damaged.damage)

    draw()
    kinds = ["changed", "became zero", "cut off", "appended", "magic", "major version", "metadata size"]
    kinds += ["tensor index offset", "data offset", "offset of tensor", "size of tensor"]
    assert [kind for kind in kinds if not any(kind in damage for damage in seen)] == []


@given(shard_directories())
def test_shard_directories_have_manifests_that_agree(path):
    shards = ShardDir(path)
    files = sorted(path.glob("shard-*.bin"))
    stored = np.concatenate([np.fromfile(file, "<u4") for file in files])
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["total_tokens"], manifest["shard_count"]) == (len(stored), len(files))
    assert np.array_equal(shards.read(0, shards.total_tokens), stored)


@given(tensors(dtypes=["bfloat16", "<i8"], max_rank=2, max_side=5))
def test_tensors_keep_to_what_was_asked_for(array):
    assert array.dtype.name in {"bfloat16", "int64"}
    assert array.ndim <= 2
    assert max(array.shape, default=0) <= 5


@given(names(), tensors())
def test_a_name_and_a_tensor_can_be_saved(tmp_path, name, array):
    apr.save({name: array}, tmp_path / "m.apr")
    assert apr.load(tmp_path / "m.apr").numpy(name).tobytes() == array.tobytes()


@given(apr_files(), st.integers(0, 39))
def test_checksums_are_made_right(path, at):
    content = bytearray(path.read_bytes())
    assert with_right_checksums(bytes(content)) == content
    content[at] ^= 1
    changed = with_right_checksums(bytes(content))
    assert int.from_bytes(changed[40:44], "little") == zlib.crc32(changed[:40] + changed[44:64])
    assert int.from_bytes(changed[-4:], "little") == zlib.crc32(changed[:-4])


def test_each_example_has_a_path_of_its_own_in_the_directory(tmp_path):
    paths = set()

    @given(
        apr_files(directory=tmp_path),
        damaged_files(directory=tmp_path),
        shard_directories(directory=tmp_path),
    )
    @settings(max_examples=10)
    def draw(file, damaged, shards):
        drawn = {file, damaged.path, shards}
        assert len(drawn) == 3
        assert not drawn & paths
        paths.update(drawn)

    draw()
    assert paths == set(tmp_path.iterdir())


def test_temporary_files_are_gone_when_the_process_ends():
    code = (
        "from hypothesis import given, settings; from apr.testing import apr_files\n"
        "@given(apr_files())\n"
        "@settings(max_examples=3, database=None)\n"
        "def show(path): assert path.exists(); print(path)\n"
        "show()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    paths = [Path(line) for line in done.stdout.split()]
    assert paths
    assert not [path for path in paths if path.parent.exists()]

"""A scan in a manifest is used only if nobody edited it; otherwise the shards are scanned again."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from apr.data import ShardDir, repair

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two shards with a manifest that keeps their scan, and a copy of that manifest in true.json."""
    path = tmp_path_factory.mktemp("scan")
    ids = np.random.default_rng(0).zipf(1.2, 6000) % 500 + 1
    for i, part in enumerate(np.split(ids, (2000,))):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    repair(path, verify=True)
    (path / "true.json").write_bytes((path / "manifest.json").read_bytes())
    return path


def paths(value, path=()):
    """The path of every value within a JSON value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from paths(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_edit_of_a_kept_scan_makes_a_new_one(directory, data):
    manifest = json.loads((directory / "true.json").read_bytes())
    path = data.draw(st.sampled_from(list(paths(manifest["scan"]))[:60]))
    edited = replaced(manifest["scan"], path, data.draw(JSON))
    assume(json.dumps(edited) != json.dumps(manifest["scan"]))
    (directory / "manifest.json").write_text(json.dumps(manifest | {"scan": edited}))
    scan = ShardDir(directory).scan()
    assert json.loads(json.dumps(scan.to_dict())) == manifest["scan"]
    assert json.loads((directory / "manifest.json").read_bytes()) == manifest


@given(scan=JSON, digest=JSON)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_may_stand_under_the_keys_of_a_scan(directory, scan, digest):
    manifest = json.loads((directory / "true.json").read_bytes())
    edited = manifest | {"scan": scan, "scan_sha256": digest}
    (directory / "manifest.json").write_text(json.dumps(edited))
    assert json.loads(json.dumps(ShardDir(directory).scan().to_dict())) == manifest["scan"]

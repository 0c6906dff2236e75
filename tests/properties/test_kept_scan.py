"""A scan that stands in a manifest is believed only if the shards can have it; anything else is read anew."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr.data import ShardDir, repair

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two shards of more than a hundred ids, with a manifest that keeps their scan."""
    path = tmp_path_factory.mktemp("scan")
    ids = np.random.default_rng(0).zipf(1.2, 6000) % 500 + 1
    for i, part in enumerate(np.split(ids, (2000,))):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    repair(path, verify=True)
    (path / "true.json").write_bytes((path / "manifest.json").read_bytes())
    return path


def places(value, at=()):
    """The places of all values within a JSON value."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


def replaced(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_for_a_scan_the_one_that_comes_back_can_be_true(directory, data):
    manifest = json.loads((directory / "true.json").read_bytes())
    true = manifest["scan"]
    at = data.draw(st.sampled_from(list(places(true))[:60]))
    edited = replaced(true, at, data.draw(JSON))
    text = json.dumps(manifest | {"scan": edited})
    (directory / "manifest.json").write_text(text)
    found = ShardDir(directory).scan()
    assert found.total_tokens == 6000
    assert all(0 <= found.share(token) <= 1 for token, _ in found.most_frequent)
    assert found.most_frequent[0][0] <= found.max_id
    assert 0 <= found.repeated_share <= 1
    # What is not known from the numbers beside it: which id, which hash, how many repeats.
    free = {"max_id", "sha256", "windows", "different_windows", "most_frequent", "distinct_ids", "mtime_ns"}
    if not free & set(at):
        kept, made = json.loads(json.dumps(found.to_dict())), dict(true)
        assert math.isclose(kept.pop("entropy_bits"), made.pop("entropy_bits"), abs_tol=0.5)
        assert kept == made


@pytest.mark.parametrize(
    "change",
    [
        {"total_tokens": 0},
        {"total_tokens": -7, "most_frequent": [[5, 10]]},
        {"most_frequent": [[5, 10]]},
        {"entropy_bits": 1.0},
        {"entropy_bits": "high"},
        {"distinct_ids": 0},
        {"windows": -1},
        {"shards": 5},
        {"shards": []},
        {"shards": [{"sha256": 5}]},
        None,
        [],
    ],
    ids=str,
)
def test_a_scan_that_no_corpus_has_is_made_anew_and_kept(directory, change):
    manifest = json.loads((directory / "true.json").read_bytes())
    wrong = manifest["scan"] | change if isinstance(change, dict) else change
    (directory / "manifest.json").write_text(json.dumps(manifest | {"scan": wrong}))
    found = ShardDir(directory).scan()
    assert json.loads(json.dumps(found.to_dict())) == manifest["scan"]
    assert json.loads((directory / "manifest.json").read_bytes()) == manifest


@pytest.mark.parametrize(
    "change", [{"max_id": 3}, {"sha256": 5}, {"sha256": "0" * 63}, {"size": 3}, {"name": None}, {"more": 1}]
)
def test_a_row_that_no_shard_has_makes_the_scan_anew(directory, change):
    manifest = json.loads((directory / "true.json").read_bytes())
    rows = [row | change for row in manifest["scan"]["shards"]]
    (directory / "manifest.json").write_text(
        json.dumps(manifest | {"scan": manifest["scan"] | {"shards": rows}})
    )
    assert json.loads(json.dumps(ShardDir(directory).scan().to_dict())) == manifest["scan"]

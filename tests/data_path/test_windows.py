"""Windows, their order and the held-out split: the specification's own figures."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("count", "seed", "epoch", "order"),
    [
        (10, 42, 0, [8, 9, 2, 6, 4, 0]),
        (10, 42, 1, [8, 2, 6, 7, 9, 4]),
        (1000, 42, 0, [444, 364, 745, 222, 540, 800]),
        (2278000, 7, 3, [1500514, 256382, 203625, 530477, 1784381, 1654477]),
        (2**40, 1, 0, [1021716543861, 741498374148, 341493760710, 132289025552, 61902964420, 822094153217]),
    ],
)
def test_the_order_of_the_specification(count, seed, epoch, order):
    from apr.data.windows import permute

    assert permute(np.arange(6), count, seed, epoch).tolist() == order


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**32))
def test_every_window_is_visited_once(count, seed, epoch):
    from apr.data.windows import permute

    assert np.array_equal(np.sort(permute(np.arange(count), count, seed, epoch)), np.arange(count))


@given(start=st.integers(0, 500), n=st.integers(1, 300))
def test_the_order_does_not_depend_on_how_it_is_cut(start, n):
    from apr.data.windows import TrainingOrder, permute

    order = TrainingOrder(count=77, seed=5, shuffle=True)
    whole = np.concatenate([permute(np.arange(77), 77, 5, epoch) for epoch in range(11)])
    assert np.array_equal(order.windows(start, n), whole[start : start + n])
    stream = TrainingOrder(count=77, seed=5, shuffle=False)
    assert np.array_equal(stream.windows(start, n), np.arange(start, start + n) % 77)


@pytest.fixture
def shards(tmp_path):
    """A directory of shards of the given lengths, ids 0, 1, 2 …"""

    def make(*lengths):
        from apr.data import ShardDir

        first = 0
        for i, length in enumerate(lengths):
            ids = np.arange(first, first + length, dtype="<u4")
            (tmp_path / f"shard-{i:05}.bin").write_bytes(ids.tobytes())
            first += length
        facts = {"schema": "pretokenize-bin-v1", "shard_count": len(lengths), "total_tokens": first}
        (tmp_path / "manifest.json").write_text(json.dumps(facts))
        return ShardDir(tmp_path)

    return make


def test_windows_run_over_the_ends_of_shards(shards):
    from apr.data.windows import Windows

    windows = Windows(shards(7, 3, 15), 4)
    assert len(windows) == 6
    assert windows.batch(np.arange(6)).tolist() == [list(range(4 * i, 4 * i + 5)) for i in range(6)]
    with pytest.raises(IndexError):
        windows.batch(np.array([6]))


@pytest.mark.parametrize(
    ("lengths", "val_tokens", "start"),
    [
        ((500, 400, 60, 40), 50, 900),  # the last shard alone is too small, the last two fit
        ((500, 440, 60), 50, 940),  # the last shard fits
        ((500, 300, 200), 50, 940),  # the last shard is more than a tenth: windows
        ((1000,), 50, 940),  # one shard: the last 5 of its 99 windows
        ((1000,), 10_000, 890),  # a tenth at most
    ],
)
def test_what_is_held_out(shards, lengths, val_tokens, start):
    from apr.data.split import split

    directory = shards(*lengths)
    parts = split(directory, None, 10, val_tokens)
    assert parts.held_out.start == start
    assert parts.held_out.batch(np.array([0]))[0, 0] == start
    trained = parts.train.batch(np.arange(len(parts.train)))
    assert trained.max() < start


def test_read_gives_any_part_of_the_stream(shards):
    directory = shards(7, 3, 15)
    for start in range(25):
        assert directory.read(start, 25 - start).tolist() == list(range(start, 25))
    with pytest.raises(IndexError):
        directory.read(20, 6)

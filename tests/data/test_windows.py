"""Windows, their order and the held-out split, with the figures of the specification."""

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
    assert at(range(6), count, seed, epoch) == order


def at(positions, count, seed, epoch):
    """Windows at positions of one data epoch."""
    from apr.data.windows import TrainingOrder

    order = TrainingOrder(count, seed, shuffle=True)
    return [int(order.windows(epoch * count + position, 1)[0]) for position in positions]


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**32))
def test_every_window_is_visited_once(count, seed, epoch):
    from apr.data.windows import TrainingOrder

    visited = TrainingOrder(count, seed, shuffle=True).windows(epoch * count, count)
    assert np.array_equal(np.sort(visited), np.arange(count))


MASK = 2**64 - 1


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def position_of(window, count, seed, epoch):
    """The specification's rounds backwards: where a window stands."""
    half = max(1, -(-(count - 1).bit_length() // 2))
    state, keys = (seed * 0xD1342543DE82EF95 + epoch) & MASK, []
    for _ in range(8):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        keys.append(mix(state))
    while True:
        left, right = window >> half, window & (2**half - 1)
        for key in reversed(keys):
            left, right = right ^ (mix((left + key) & MASK) & (2**half - 1)), left
        window = left << half | right
        if window < count:
            return window


@given(st.data(), st.integers(1, 2**40), st.integers(0, 2**63 - 1), st.integers(0, 2**20))
def test_every_position_has_a_window_of_its_own(data, count, seed, epoch):
    position = data.draw(st.integers(0, count - 1))
    (window,) = at([position], count, seed, epoch)
    assert 0 <= window < count
    assert position_of(window, count, seed, epoch) == position


@given(start=st.integers(0, 500), n=st.integers(1, 300))
def test_the_order_does_not_depend_on_how_it_is_cut(start, n):
    from apr.data.windows import TrainingOrder

    order = TrainingOrder(count=77, seed=5, shuffle=True)
    whole = [window for epoch in range(11) for window in at(range(77), 77, 5, epoch)]
    assert order.windows(start, n).tolist() == whole[start : start + n]
    stream = TrainingOrder(count=77, seed=5, shuffle=False)
    assert np.array_equal(stream.windows(start, n), np.arange(start, start + n) % 77)


def test_a_shard_that_shrinks_or_disappears_is_named(shards, tmp_path):
    import apr

    directory = shards(10, 10, 10)
    assert directory.read(8, 4).tolist() == [8, 9, 10, 11]
    (tmp_path / "shard-00001.bin").write_bytes(bytes(8))
    with pytest.raises(apr.TruncatedError, match=r"shard-00001\.bin.*byte 8"):
        directory.read(12, 4)
    (tmp_path / "shard-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00002\.bin"):
        directory.read(20, 4)


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


def test_windows_cross_the_ends_of_shards(shards):
    from apr.data.windows import Windows

    windows = Windows(shards(7, 3, 15), 4)
    assert len(windows) == 6
    assert windows.batch(np.arange(6)).tolist() == [list(range(4 * i, 4 * i + 5)) for i in range(6)]
    with pytest.raises(IndexError):
        windows.batch(np.array([6]))


@pytest.mark.parametrize(
    ("lengths", "val_tokens", "start", "says"),
    [
        # The last shard alone is too small, the last two fit.
        ((500, 400, 60, 40), 50, 900, "the last 2 shards (shard-00002.bin to shard-00003.bin), 100 tokens"),
        ((500, 440, 60), 50, 940, "the last shard (shard-00002.bin), 60 tokens"),
        # The last shard is more than a tenth: windows.
        ((500, 300, 200), 50, 940, "the last 5 windows of 10 tokens, from id 940 on"),
        ((1000,), 50, 940, "the last 5 windows of 10 tokens"),  # of one shard, which has 99
        ((1000,), 10, 980, "the last window of 10 tokens, from id 980 on"),
        ((1000,), 10_000, 890, "the last 10 windows of 10 tokens"),  # a tenth at most
    ],
)
def test_what_is_held_out(shards, lengths, val_tokens, start, says):
    from apr.data.split import split_dataset

    directory = shards(*lengths)
    parts = split_dataset(directory, None, 10, val_tokens)
    assert says in parts.description
    assert parts.held_out.start == start
    assert parts.held_out.batch(np.array([0]))[0, 0] == start
    trained = parts.train.batch(np.arange(len(parts.train)))
    assert trained.max() < start


def test_read_returns_any_part_of_the_stream(shards):
    directory = shards(7, 3, 15)
    for start in range(25):
        assert directory.read(start, 25 - start).tolist() == list(range(start, 25))
    with pytest.raises(IndexError):
        directory.read(20, 6)


def test_ranges_outside_the_stream_are_refused(shards):
    from apr.data.windows import Windows
    from apr.errors import RefusedError

    stream = shards(7, 3, 15)
    total = stream.total_tokens
    for start, stop in ((0, 10**9), (-5, None), (0, total + 1)):
        with pytest.raises(IndexError, match=f"there are {total}"):
            Windows(stream, 4, start, stop)
    for seq_length in (0, -1):
        with pytest.raises(RefusedError, match="at least 1"):
            Windows(stream, seq_length)
    out = np.empty((1, 10), "<u4")
    for starts in ([total - 3], [-1]):
        with pytest.raises(IndexError, match=f"there are {total}"):
            stream.gather(starts, out)
    with pytest.raises(IndexError, match=f"there are {total}"):
        stream.read_into(total - 3, out[0])

"""Corpora that are not text: each threshold alone, and values next to it that pass."""

import numpy as np
import pytest

from apr.data.corpus_check import corpus_problems
from apr.data.listing import list_shards
from apr.data.scan import scan_shards

EOS, UNK = 0, 3


def text(tokens, vocabulary=400, seed=0):
    """Ids without order and without `EOS` or `UNK`, about alike in number."""
    return np.random.default_rng(seed).integers(10, 10 + vocabulary, tokens)


def judged(path, ids, shards=1):
    path.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(np.asarray(ids), shards)):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    return corpus_problems(scan_shards(list_shards(path)), EOS, UNK)


def with_share(share, of, tokens=10_000):
    ids = text(tokens)
    ids[: int(share * tokens)] = of
    return np.random.default_rng(1).permutation(ids)


def with_entropy(bits, tokens=60_000):
    """One id more often than the others, which are alike; none over a half."""
    ids = np.random.default_rng(2).permutation(np.arange(tokens) % 32 + 10)
    half = tokens * 49 // 100
    rare = np.searchsorted(np.cumsum(bits), np.random.default_rng(3).random(tokens - half))
    return np.random.default_rng(4).permutation(np.concatenate([np.full(half, 5), rare + 10, ids[:16]]))


def copies(count, once=40_000):
    """One text again and again, each time after other ids than before."""
    return np.concatenate([np.concatenate([text(137, seed=9 + i), text(once)]) for i in range(count)])


@pytest.mark.parametrize(
    ("trips", "passes", "says"),
    [
        (with_share(0.501, 7), with_share(0.499, 7), "id 7 makes up 50.10%"),
        (
            with_entropy([0.35, 0.35, 0.15, 0.15]),
            with_entropy([0.28, 0.28, 0.22, 0.22]),
            "bits per token",
        ),
        (text(2_000, 15), text(2_000, 16), "15 different ids"),
        (text(1_024, 15), text(1_023, 15), "15 different ids"),
        (with_share(0.0101, UNK), with_share(0.01, UNK), "1.01%"),
        (with_share(0.2501, EOS), with_share(0.25, EOS), "25.01%"),
        (copies(6), copies(4), "83% of the 64-id windows"),
        (np.tile(text(500), 200), text(100_000), "windows"),
    ],
    ids=["share", "entropy", "distinct", "few tokens", "unknown", "ends", "copies", "period"],
)
def test_each_threshold_alone(trips, passes, says, tmp_path):
    (problem,) = judged(tmp_path / "degenerate", trips)
    assert says in problem
    assert judged(tmp_path / "good", passes) == []


def test_a_corpus_of_one_id_has_one_line_per_reason(tmp_path):
    problems = judged(tmp_path / "a", np.full(100_000, UNK))
    for problem, word in zip(problems, ("id 3", "bits", "different", "windows"), strict=True):
        assert word in problem


def test_a_corpus_too_small_to_judge_passes(tmp_path):
    assert judged(tmp_path / "a", np.full(31, 7)) == []
    assert judged(tmp_path / "b", np.full(32, 7)) != []
    assert judged(tmp_path / "c", np.tile(text(500), 20)) == []  # about thirty windows


@pytest.mark.parametrize("shards", [1, 3])
def test_repetition_does_not_depend_on_hashing_or_shards(shards, tmp_path):
    judged(tmp_path / "a", copies(3, 2_000_000), shards)
    listed = list_shards(tmp_path / "a")
    one, two = (scan_shards(listed, hashes=hashes) for hashes in (True, False))
    assert (one.windows, one.different_windows) == (two.windows, two.different_windows)
    assert one.repeated_share == pytest.approx(2 / 3, abs=0.02)


def test_unknown_text_is_judged_only_if_its_id_is_known(tmp_path):
    ids = np.arange(10_000) % 400 + 10
    ids[::50] = UNK
    ids.astype("<u4").tofile(tmp_path / "shard-00000.bin")
    scan = scan_shards(list_shards(tmp_path))
    assert corpus_problems(scan, None, None) == []
    (problem,) = corpus_problems(scan, None, UNK)
    assert "2.00%" in problem

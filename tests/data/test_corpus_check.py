"""Corpora that are not text: each threshold alone, and values next to it that pass."""

import numpy as np
import pytest

from apr.data.corpus_check import corpus_problems
from apr.data.listing import list_shards
from apr.data.scan import scan_shards

EOS, UNK = 0, 3


def text(tokens, vocabulary=400, seed=0):
    """Ids without order and without `EOS` or `UNK`, the n-th about n times rarer than the first."""
    drawn = np.random.default_rng(seed).random(tokens)
    share = 1 / (np.arange(vocabulary) + 8)
    return np.searchsorted(np.cumsum(share) / share.sum(), drawn) + 10


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
    """One id nearly half of all, and four that are frequent in so many parts of the rest."""
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
    ids = text(10_000)
    ids[::50] = UNK
    ids.astype("<u4").tofile(tmp_path / "shard-00000.bin")
    scan = scan_shards(list_shards(tmp_path))
    assert corpus_problems(scan, None, None) == []
    (problem,) = corpus_problems(scan, None, UNK)
    assert "2.00%" in problem


def zipf(tokens, vocabulary, seed=0):
    return (np.random.default_rng(seed).zipf(1.1, tokens) - 1) % vocabulary + 10


def with_ends(ids):
    """End texts of 50 tokens each."""
    ids = ids.copy()
    ids[::50] = EOS
    return ids


@pytest.mark.parametrize("vocabulary", [64, 256, 512, 4096, 50_257, 151_936])
@pytest.mark.parametrize("tokens", [2_000, 100_000, 1_000_000])
def test_ids_drawn_at_random_are_not_text(tokens, vocabulary, tmp_path):
    random = np.random.default_rng(vocabulary)
    drawn = random.integers(0, vocabulary, tokens) + 10
    shuffled = random.permutation(np.arange(tokens) % vocabulary) + 10
    for i, ids in enumerate((drawn, with_ends(drawn), shuffled)):
        (problem,) = judged(tmp_path / str(i), ids, shards=2)
        assert "at random" in problem
    assert judged(tmp_path / "text", zipf(tokens, vocabulary)) == []


@pytest.mark.parametrize("tokens", [1_100, 20_000, 500_000])
def test_amino_acids_are_not_taken_for_random_ids(tokens, tmp_path):
    """Of all natural texts they are the nearest to it: 4.19 of 4.32 bits (frequencies of UniProtKB)."""
    percent = [8.25, 5.53, 4.06, 5.45, 1.37, 3.93, 6.75, 7.07, 2.27, 5.96]
    percent += [9.66, 5.84, 2.42, 3.86, 4.7, 6.56, 5.34, 1.08, 2.92, 6.87]
    ids = np.random.default_rng(tokens).choice(20, tokens, p=np.divide(percent, sum(percent))) + 4
    assert judged(tmp_path / "a", ids) == []


@pytest.mark.parametrize("vocabulary", [300, 600, 2000])
@pytest.mark.parametrize("tokens", [1_100, 4_000, None])
def test_text_of_a_vocabulary_made_for_it_is_not_taken_for_random_ids(vocabulary, tokens, tmp_path):
    """A vocabulary trained on the text itself gives the most even frequencies."""
    from pathlib import Path

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("docs/*.md"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(texts)])
    assert judged(tmp_path / "a", ids[:tokens]) == []

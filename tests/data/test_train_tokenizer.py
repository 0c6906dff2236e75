"""Training of a vocabulary: its size, its bytes, and who can read it."""

import json
import subprocess
import sys

import pytest

from apr.data.corpus import Corpus
from apr.data.tokenizers import load_tokenizer
from apr.data.train_tokenizer import FILES, train
from apr.errors import RefusedError, UsageError

TEXT = "".join(
    f"def function_{i}(argument):\n    return argument * {i} + other_{i % 13}\n" for i in range(300)
)


def ids_of(loaded, text):
    return loaded.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(4):
        (tmp_path / "corpus" / f"{i}.py").write_text(TEXT[i * 1000 :])
    return Corpus([str(tmp_path / "corpus")])


def test_the_size_includes_bytes_and_the_end_of_text(corpus, tmp_path):
    made = train(corpus, 300, tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert made.vocab_size == loaded.vocab_size == 300
    assert (loaded.eos_token, loaded.eos_id) == ("<|endoftext|>", 0)
    vocabulary = json.loads((tmp_path / "t" / "vocab.json").read_text())
    assert sorted(vocabulary.values()) == list(range(300))
    assert len((tmp_path / "t" / "merges.txt").read_text().splitlines()) == 1 + 300 - 257


def test_any_text_is_decoded_unchanged(corpus, tmp_path):
    train(corpus, 300, tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    text = "naïve 東京 \x00\r\n\t\U0001f600 <|endoftext|>"
    assert loaded.decode(ids_of(loaded, text)) == text


def test_the_same_corpus_gives_the_same_bytes(corpus, tmp_path):
    train(corpus, 320, tmp_path / "here")
    script = "import sys; from apr.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["tokenize", "train", "--corpus", str(tmp_path / "corpus"), "--vocab-size", "320"]
    subprocess.run(
        [sys.executable, "-c", script, *flags, "--output", str(tmp_path / "there")],
        env={"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PATH": ""},
        check=True,
        capture_output=True,
    )
    for name in FILES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_vocab_and_merges_alone_are_the_same_tokenizer(corpus, tmp_path):
    train(corpus, 320, tmp_path / "t")
    whole = load_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").unlink()
    assert ids_of(load_tokenizer(tmp_path / "t"), TEXT) == ids_of(whole, TEXT)


def test_transformers_can_read_it(corpus, tmp_path):
    from transformers import AutoTokenizer

    train(corpus, 320, tmp_path / "t")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert theirs(TEXT)["input_ids"] == ids_of(load_tokenizer(tmp_path / "t"), TEXT)
    assert theirs.eos_token_id == 0


def test_a_corpus_with_fewer_merges_gives_fewer_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("aaaa")
    made = train(Corpus([str(tmp_path / "a.txt")]), 5000, tmp_path / "t")
    assert made.vocab_size == load_tokenizer(tmp_path / "t").vocab_size < 300


def test_fewer_tokens_than_bytes_is_wrong_usage(corpus, tmp_path):
    with pytest.raises(UsageError, match="257"):
        train(corpus, 256, tmp_path / "t")


def test_an_existing_tokenizer_is_not_overwritten(corpus, tmp_path):
    train(corpus, 300, tmp_path / "t")
    before = (tmp_path / "t" / "vocab.json").read_bytes()
    with pytest.raises(RefusedError, match=r"tokenizer\.json"):
        train(corpus, 310, tmp_path / "t")
    assert (tmp_path / "t" / "vocab.json").read_bytes() == before


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RefusedError, match=r"a\.txt"):
        train(Corpus([str(tmp_path / "a.txt")]), 300, tmp_path / "t")

"""`--estimate-only`: what it says of a corpus, and what the encoding then has."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from apr.data.corpus import Corpus
from apr.data.encode import encode_corpus, estimate_corpus
from apr.data.encode_options import EncodeOptions, prepare
from apr.data.estimate import estimated_totals

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"
WORDS = ["def", "return", "naïve", "東京", "x" * 9, "1234", "\n    ", "#"]


def texts(count, scale=1):
    """Documents of very different lengths, whose tokens become denser from the first to the last."""
    made = random.Random(0)
    for n in range(count):
        words = WORDS[: 2 + 6 * n // count]
        yield " ".join(made.choices(words, k=int(scale * made.lognormvariate(3, 1))))


def lines(count, scale=1):
    return "".join(json.dumps({"content": text}) + "\n" for text in texts(count, scale)).encode()


def mixed(root):
    (root / "a.jsonl").write_bytes(lines(900) + b"nonsense\n\n" * 200)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines(700), mtime=0))
    (root / "c.json").write_text(json.dumps([{"content": text} for text in texts(300)]))
    column = pa.array([text if n % 3 else None for n, text in enumerate(texts(600))])
    parquet.write_table(pa.table({"content": column}), root / "d.parquet", row_group_size=50)
    for n, text in enumerate(texts(90, 20)):
        (root / f"e{n:03}.txt").write_text(text)
    (root / "f.txt").write_bytes(b"\xff" * 9999)
    (root / "g.txt").write_text("")
    (root / "h.txt").write_text("many short words " * 20_000)


def short_documents(root):
    (root / "a.jsonl").write_bytes(b'{"content": "x"}\n' * 20_000 + lines(40, 100))


def one_long_file_among_many(root):
    for n in range(300):
        (root / f"{n:03}.py").write_text("a = 1\n")
    (root / "150.txt").write_text("".join(texts(400, 10)))


@pytest.mark.parametrize("policy", ["between", "after", "none"])
@pytest.mark.parametrize("write", [mixed, short_documents, one_long_file_among_many])
def test_a_small_corpus_is_counted(write, policy, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    write(root)
    options = EncodeOptions((str(root),), TOKENIZER, tmp_path / "out", eos_policy=policy, shard_tokens=10_000)
    estimate = estimate_corpus(options, *prepare(options))
    assert not (tmp_path / "out").exists()
    manifest = encode_corpus(options).manifest
    assert estimate.counted
    assert (estimate.tokens, estimate.documents, estimate.shards) == (
        manifest["total_tokens"],
        manifest["total_documents"],
        manifest["shard_count"],
    )


@pytest.mark.parametrize("part", ["1/3", "2/3", "3/3"])
def test_a_part_is_counted_alone(part, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    mixed(root)
    options = EncodeOptions((str(root),), TOKENIZER, tmp_path / "out", part=part)
    estimate = estimate_corpus(options, *prepare(options))
    manifest = encode_corpus(options).manifest
    assert (estimate.tokens, estimate.documents) == (manifest["total_tokens"], manifest["total_documents"])


def large_lines(root):
    (root / "a.jsonl").write_bytes(lines(20_000, 4))
    (root / "b.jsonl").write_bytes(lines(3_000, 4))


def large_parquet(root):
    column = pa.array(list(texts(20_000, 4)))
    parquet.write_table(pa.table({"content": column}), root / "a.parquet", row_group_size=2_000)


def large_texts(root):
    for n, text in enumerate(texts(900, 60)):
        (root / f"{n:04}.txt").write_text(text)


def large_compressed(root):
    for n in range(3):
        (root / f"{n}.jsonl.gz").write_bytes(gzip.compress(lines(8_000, 4), 1, mtime=0))


def all_kinds(root):
    (root / "a.jsonl").write_bytes(lines(6_000, 4))
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines(4_000, 1), 1, mtime=0))
    column = pa.array(list(texts(4_000, 2)))
    parquet.write_table(pa.table({"content": column}), root / "c.parquet")
    (root / "d.txt").write_text("\n".join(texts(3_000, 4)))


@pytest.mark.parametrize("write", [large_lines, large_parquet, large_texts, large_compressed, all_kinds])
def test_a_sample_of_a_large_corpus_is_within_two_percent(write, tmp_path):
    def count(texts):
        # As cheap as a tokenizer can be: it counts words.
        return [text.count(" ") + text.count("東") for text in texts]

    write(tmp_path)
    corpus = Corpus([str(tmp_path)])
    items = [item.text for _, item in corpus.items()]
    tokens, documents = estimated_totals(corpus, count)
    assert tokens == pytest.approx(sum(count(items)), rel=0.02)
    assert documents == pytest.approx(len(items), rel=0.02)

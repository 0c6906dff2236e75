"""Parts of a corpus: every document in exactly one of them, cut between documents, by bytes."""

import gzip
import json
from itertools import chain

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from apr.data.corpus import Corpus, Document
from apr.data.corpus_part import Part, parse_part, part_range
from apr.errors import UsageError


def documents(corpus, start=None, stop=None):
    batches = corpus.batches() if start is None else corpus.batches(start, stop)
    return [item for batch in batches for item in corpus.read_all(batch)]


def texts(items):
    return [item.text if isinstance(item, Document) else item.reason for item in items]


def parts_of(corpus, of):
    ranges = [part_range(corpus, Part(number, of)) for number in range(1, of + 1)]
    assert [one.stop for one in ranges[:-1]] == [one.start for one in ranges[1:]]
    return [texts(documents(corpus, one.start, one.stop)) for one in ranges]


def write_mixed(root, lines, rows):
    """Files of every format, some empty."""
    (root / "a.txt").write_text("one text\n" * 20)
    (root / "b.txt").write_text("")
    content = "".join(json.dumps({"content": line}) + "\n" for line in lines).encode()
    (root / "c.jsonl").write_bytes(content)
    (root / "d.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    parquet.write_table(pa.table({"content": rows}), root / "e.parquet", row_group_size=3)
    parquet.write_table(pa.table({"other": [1, 2]}), root / "f.parquet")
    (root / "g.bin.txt").write_bytes(b"\xff")
    (root / "h.txt").write_text("")
    (root / "i.json").write_text(json.dumps([{"content": line} for line in lines]))


@settings(max_examples=25)
@given(
    st.lists(st.text(max_size=40), max_size=30),
    st.lists(st.text(max_size=10) | st.none(), min_size=1, max_size=20),
    st.integers(1, 60),
    st.integers(1, 200),
)
def test_every_document_is_in_exactly_one_part(tmp_path_factory, lines, rows, of, batch_bytes):
    root = tmp_path_factory.mktemp("corpus")
    write_mixed(root, lines, rows)
    corpus = Corpus([str(root)], batch_bytes=batch_bytes)
    parts = parts_of(corpus, of)
    assert [text for part in parts for text in part] == texts(documents(corpus))


@pytest.mark.parametrize("name", ["big.jsonl", "big.parquet"])
def test_one_large_file_is_cut_into_parts_of_about_the_same_size(name, tmp_path):
    values = [f"{n:08}" * 4 for n in range(10_000)]
    if name.endswith(".jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"content": value}) + "\n" for value in values))
    else:
        parquet.write_table(pa.table({"content": values}), tmp_path / name)
    parts = parts_of(Corpus([str(tmp_path / name)]), 7)
    assert all(abs(len(part) - 10_000 / 7) < 2 for part in parts)


def test_a_line_without_an_end_and_a_cut_at_its_first_byte(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"content": "a"}\n{"content": "b"}')
    corpus = Corpus([str(path)])
    assert parts_of(corpus, 2) == [["a"], ["b"]]
    assert list(chain.from_iterable(parts_of(corpus, 33))) == ["a", "b"]


def test_a_skipped_line_of_a_part_says_where_its_lines_are_counted_from(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"content": "a"}\nnonsense\nnonsense\n')
    corpus = Corpus([str(path)])
    begin = part_range(corpus, Part(2, 2)).start
    corpus.lines_from = begin
    names = [item.name for item in documents(corpus, begin, None)]
    assert names[0].endswith(f"x.jsonl:1 (counted from byte {begin.offset})")


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", " 1/3", "01/3"])
def test_a_part_that_is_not_one_of_n_is_refused(text):
    with pytest.raises(UsageError, match="--part"):
        parse_part(text)
    assert parse_part("3/7") == Part(3, 7)

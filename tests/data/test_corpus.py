"""Documents of a corpus: which, in which order, and what becomes of those that are none."""

import gzip
import io
import json
import sys

import pytest

from apr.data.corpus import Corpus, Document, Skipped
from apr.errors import FormatError, RefusedError

TEXTS = ["one\r\n", "", "zwei ä\u2028", "three"]


def texts(corpus):
    return [item.text for _, item in corpus.items() if isinstance(item, Document)]


def skipped(corpus):
    return [item for _, item in corpus.items() if isinstance(item, Skipped)]


def jsonl(field="content"):
    return "".join(json.dumps({field: text}) + "\n" for text in TEXTS).encode()


def zstd(content):
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_parquet(path, column, name="content"):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: column}), path, row_group_size=2)
    return path


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ["b.py", "a.py", "a/z.py", "a/b/c.py", "test/t.py", "a/test/u.py", "notes.txt", "Z.py"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def test_a_directory_is_walked_in_sorted_order(tree):
    assert texts(Corpus([str(tree)])) == [
        "Z.py",
        "a/b/c.py",
        "a/test/u.py",
        "a/z.py",
        "a.py",
        "b.py",
        "notes.txt",
        "test/t.py",
    ]


def test_patterns_select_files_and_excludes_leave_them_out(tree):
    found = texts(Corpus([str(tree)], patterns=["*.py"], exclude=["test/*"]))
    assert found == ["Z.py", "a/b/c.py", "a/test/u.py", "a/z.py", "a.py", "b.py"]
    assert texts(Corpus([str(tree)], patterns=["a/*"], exclude=["test"])) == ["a/b/c.py", "a/z.py"]


def test_patterns_do_not_apply_to_a_file_given_by_path(tree):
    assert texts(Corpus([str(tree / "notes.txt")], patterns=["*.py"])) == ["notes.txt"]


def test_no_match_is_refused(tree):
    with pytest.raises(RefusedError, match="--pattern"):
        Corpus([str(tree)], patterns=["*.rs"])


def test_a_missing_path_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        Corpus([str(tmp_path / "gone")])


def test_the_output_inside_the_corpus_is_left_out(tree):
    (tree / "shards").mkdir()
    (tree / "shards" / "manifest.json").write_text("{}")
    assert "{}" not in texts(Corpus([str(tree)], without=tree / "shards"))


def test_links_to_folders_are_not_followed(tree):
    (tree / "a" / "up").symlink_to(tree)
    (tree / "dangling").symlink_to(tree / "gone")
    assert len(texts(Corpus([str(tree)]))) == 8


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_every_line_of_json_lines_is_a_document(ending, tmp_path):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[ending]
    path = tmp_path / f"c.jsonl{ending}"
    path.write_bytes(pack(jsonl()))
    corpus = Corpus([str(path)])
    assert texts(corpus) == TEXTS
    assert corpus.format == "jsonl"


def test_blank_lines_and_a_missing_last_line_break_are_accepted(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\n{"content": "a"}\n\n{"content": "b"}')
    assert texts(Corpus([str(path)])) == ["a", "b"]
    assert skipped(Corpus([str(path)])) == []


def test_parquet_rows_of_any_string_type_are_documents(tmp_path):
    import pyarrow as pa

    for type_ in (pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        values = [text.encode() for text in TEXTS] if type_ == pa.binary() else TEXTS
        path = write_parquet(
            tmp_path / "c.parquet", pa.array(values, pa.binary() if values is not TEXTS else None)
        )
        assert texts(Corpus([str(path)])) == TEXTS, type_


def test_standard_input_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(jsonl("body"))))
    corpus = Corpus(["-"], content_field="body")
    assert corpus.nbytes is None
    assert texts(corpus) == TEXTS


def test_an_invalid_document_is_named_with_its_line(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'{"content": "good"}\n{"text": "x"}\n{"content": 3}\nnot json\n[1]\n{"content": "\xff"}\n'
        b'{"content": "\\ud800"}\n{"content": "good too"}\n'
    )
    corpus = Corpus([str(path)])
    assert texts(corpus) == ["good", "good too"]
    assert [item.name for item in skipped(corpus)] == [f"{path}:{n}" for n in range(2, 8)]
    assert "'content'" in skipped(corpus)[0].reason
    assert "UTF-8" in skipped(corpus)[4].reason


def test_a_text_file_with_invalid_utf8_is_skipped(tmp_path):
    (tmp_path / "a.py").write_bytes(b"ab\xe9")
    (tmp_path / "b.py").write_bytes(b"\xef\xbb\xbfb")
    corpus = Corpus([str(tmp_path)])
    assert texts(corpus) == ["\ufeffb"]
    (item,) = skipped(corpus)
    assert "byte 2" in item.reason


def test_parquet_without_the_column_or_with_nulls_is_skipped(tmp_path):
    import pyarrow as pa

    other = write_parquet(tmp_path / "a.parquet", pa.array(TEXTS), name="other")
    nulls = write_parquet(tmp_path / "b.parquet", pa.array(["x", None, "y"]))
    numbers = write_parquet(tmp_path / "c.parquet", pa.array([1, 2]))
    corpus = Corpus([str(other), str(nulls), str(numbers)])
    assert texts(corpus) == ["x", "y"]
    assert [(item.name, item.count) for item in skipped(corpus)] == [
        (str(other), 4),
        (f"{nulls}:2", 1),
        (str(numbers), 2),
    ]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_file_is_named(name, damage, tmp_path):
    import random

    path = tmp_path / name
    lines = b"".join(
        json.dumps({"content": random.Random(i).randbytes(40).hex()}).encode() + b"\n" for i in range(500)
    )
    if name.endswith("parquet"):
        write_parquet(path, [str(i) for i in range(500)])
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if name.endswith("gz") else zstd(lines))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"noise" * 20)
    with pytest.raises(FormatError, match=name):
        list(Corpus([str(path)]).items())


def test_positions_grow_to_the_size_of_the_corpus(tree, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(jsonl())
    corpus = Corpus([str(tree), str(path)])
    positions = [position for position, _ in corpus.items()]
    assert positions == sorted(positions)
    assert positions[-1] == corpus.nbytes


def test_the_fingerprint_changes_with_a_file(tree):
    before = Corpus([str(tree)]).fingerprint()
    assert Corpus([str(tree)]).fingerprint() == before
    (tree / "a.py").write_text("longer")
    assert Corpus([str(tree)]).fingerprint() != before


LINES = b'{"content": "one"}\n\n{"content": "two"}\n'


@pytest.mark.parametrize(
    ("name", "content", "field", "texts"),
    [
        ("a.ndjson", LINES, "content", ["one", "two"]),
        ("a.json", LINES, "content", ["one", "two"]),
        ("a.JSON.gz", gzip.compress(LINES, mtime=0), "content", ["one", "two"]),
        ("c4-train.00000-of-01024.json.gz", gzip.compress(LINES, mtime=0), "content", ["one", "two"]),
        ("a.ndjson.gz", gzip.compress(LINES, mtime=0), "content", ["one", "two"]),
        ("a.json", LINES, "text", []),  # skipped, never encoded with the JSON around it
        ("a.json", LINES.splitlines()[0], "content", ["one"]),
        ("package.json", b'{"name": "x"}\n', "content", ['{"name": "x"}\n']),
        ("a.json", b'{\n  "content": "x"\n}\n', "content", ['{\n  "content": "x"\n}\n']),
        ("a.json", b"[1, 2]\n[3]\n", "content", ["[1, 2]\n[3]\n"]),
        ("a.json", b"", "content", [""]),
    ],
)
def test_json_lines_are_distinguished_from_a_json_document(name, content, field, texts, tmp_path):
    from apr.data.corpus import Corpus, Document

    (tmp_path / name).write_bytes(content)
    corpus = Corpus([str(tmp_path)], content_field=field)
    found = [item for _, item in corpus.items()]
    assert [item.text for item in found if isinstance(item, Document)] == texts
    assert len(found) == (len(texts) or 2)

"""Documents of a corpus: which, in which order, and what becomes of those that are none."""

import gzip
import io
import json
import shutil
import subprocess
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


def parquet_types():
    import pyarrow as pa

    return [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
        *(pa.dictionary(pa.int32(), pa.binary()), pa.json_()),
    ]


@pytest.mark.parametrize("type_", parquet_types(), ids=str)
def test_parquet_rows_of_any_string_type_are_documents(type_, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts_and_null = pa.array([*TEXTS, None])
    if isinstance(type_, pa.BaseExtensionType):
        column = pa.ExtensionArray.from_storage(type_, texts_and_null)
    elif pa.types.is_dictionary(type_):
        column = texts_and_null.cast(type_.value_type).dictionary_encode().cast(type_)
    else:
        column = texts_and_null.cast(type_)
    path = write_parquet(tmp_path / "c.parquet", column)
    stored = pq.read_schema(path).field("content").type
    assert pa.types.is_dictionary(stored) == pa.types.is_dictionary(type_)
    corpus = Corpus([str(path)])
    corpus.check_fields()
    assert texts(corpus) == TEXTS
    assert [item.name for item in skipped(corpus)] == [f"{path}:{len(TEXTS) + 1}"]


def test_parquet_values_of_a_fixed_size_are_documents(tmp_path):
    import pyarrow as pa

    path = write_parquet(tmp_path / "c.parquet", pa.array([b"abc", b"xyz"], pa.binary(3)))
    assert texts(Corpus([str(path)])) == ["abc", "xyz"]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_arrays(columns, ["content", "content", "text"]), path)
    for act in (Corpus.check_fields, texts):
        with pytest.raises(RefusedError, match=r"c\.parquet: 2 columns are named 'content'"):
            act(Corpus([str(path)]))
    assert texts(Corpus([str(path)], content_field="text")) == ["c"]


@pytest.mark.parametrize("type_", ["int64", "list<string>", "struct<a: string>"])
def test_a_parquet_column_that_is_not_text_is_refused_with_the_columns_that_are(type_, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    value = {"int64": 1, "list<string>": ["a"], "struct<a: string>": {"a": "b"}}[type_]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": 1, "content": value, "body": "x", "url": "y"}]), path)
    with pytest.raises(RefusedError, match=rf"'content' is {type_[:4]}.*'body', 'url'"):
        Corpus([str(path)]).check_fields()


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


def skippable():
    # https://datatracker.ietf.org/doc/html/rfc8878#section-3.1.2
    return b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"


STREAMS = {
    "empty": lambda _: b"",
    "whole": lambda whole: whole,
    "two": lambda whole: whole + whole,
    "cut in the trailer": lambda whole: whole[:-1],
    "cut before the trailer": lambda whole: whole[: len(whole) - 9],
    "cut in the header": lambda whole: whole[:3],
    "second cut in its header": lambda whole: whole + whole[:2],
    "second cut in the middle": lambda whole: whole + whole[: len(whole) // 2],
    "followed by a letter": lambda whole: whole + b"x",
    "followed by garbage": lambda whole: whole + b"garbage!" * 9,
    "one zero byte": lambda _: b"\0",
}
ZSTD_STREAMS = {
    "skippable first": lambda whole: skippable() + whole,
    "skippable last": lambda whole: whole + skippable(),
    "skippable between": lambda whole: whole + skippable() + whole,
    "skippable alone": lambda _: skippable(),
    "skippable cut": lambda whole: whole + skippable()[:-1],
    "followed by zeros": lambda whole: whole + bytes(9),
}


@pytest.mark.parametrize(
    ("kind", "ending", "tool"),
    [(kind, ending, tool) for ending, tool in ((".gz", "gzip"), (".zst", "zstd")) for kind in STREAMS]
    + [(kind, ".zst", "zstd") for kind in ZSTD_STREAMS],
)
@pytest.mark.parametrize("name", ["c.jsonl", "c.json"])
def test_a_stream_is_damaged_exactly_if_its_own_tool_calls_it_so(name, kind, ending, tool, tmp_path):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    lines = "".join(json.dumps({"content": f"{i} {'ab' * (i % 50)}"}) + "\n" for i in range(99)).encode()
    path = tmp_path / f"{name}{ending}"
    whole = gzip.compress(lines, mtime=0) if tool == "gzip" else zstd(lines)
    path.write_bytes((STREAMS | ZSTD_STREAMS)[kind](whole))
    is_whole = subprocess.run([tool, "-t", "-q", path], check=False, capture_output=True).returncode == 0
    corpus = Corpus([str(path)])
    if is_whole:
        unpacked = subprocess.run([tool, "-dc", path], check=True, capture_output=True).stdout
        assert texts(corpus) == [json.loads(line)["content"] for line in unpacked.splitlines()]
        return
    with pytest.raises(FormatError, match=rf"{name}\{ending}: damaged"):
        texts(corpus)


def test_a_zstd_window_that_is_too_large_is_named(tmp_path):
    # A frame whose header asks for a window of 2 GiB, as `zstd --long=31` writes: one raw block of a line.
    line = b'{"content": "x"}\n'
    window = (31 - 10) << 3
    block = (len(line) << 3 | 1).to_bytes(3, "little")
    (tmp_path / "c.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([window]) + block + line)
    with pytest.raises(FormatError, match=r"c\.jsonl\.zst: .*window.*--long=27"):
        texts(Corpus([str(tmp_path)]))


RECORDS = [{"id": n, "content": text, "tags": ["[", {"a": '"]}'}]} for n, text in enumerate([*TEXTS, '\\"]'])]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.ndjson"])
@pytest.mark.parametrize(
    "layout", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}], ids=str
)
def test_elements_of_a_json_array_are_documents(layout, name, ending, tmp_path):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[ending]
    path = tmp_path / f"{name}{ending}"
    content = json.dumps(RECORDS, **layout).encode()
    for start, end in ((b"", b""), (b"\xef\xbb\xbf", b"\n"), (b" \n\t", b"\r\n  ")):
        path.write_bytes(pack(start + content + end))
        corpus = Corpus([str(tmp_path)])
        corpus.check_fields()
        assert texts(corpus) == [record["content"] for record in RECORDS]
        assert corpus.format == "json"


def test_a_json_array_may_be_cut_anywhere_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "c.json").write_text(json.dumps(RECORDS, indent=1))
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("apr.data.corpus_json._CHUNK_BYTES", size)
        assert texts(Corpus([str(tmp_path)])) == [record["content"] for record in RECORDS]


def test_an_element_that_is_not_valid_is_named_with_its_number(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b'[{"content": "a"}, 3, {"content": 4}, {"text": "b"}, {x}, {"content": "\xff"}]')
    corpus = Corpus([str(path)])
    assert texts(corpus) == ["a"]
    assert [item.name for item in skipped(corpus)] == [f"{path}:{n}" for n in range(2, 7)]


@pytest.mark.parametrize("end", ["", "]", ",]", "] x", '], {"content": "c"}]', ',, {"content": "c"}]'])
def test_a_json_array_that_does_not_end_as_one_is_damaged(end, tmp_path):
    (tmp_path / "c.json").write_text('[{"content": "a"}, {"content": "b"}' + end)
    corpus = Corpus([str(tmp_path)])
    if end == "]":
        assert texts(corpus) == ["a", "b"]
        return
    with pytest.raises(FormatError, match=r"c\.json: damaged"):
        texts(corpus)


@pytest.mark.parametrize(
    "place", [".git/config", ".hg/store", ".svn/x", ".env", "a/.env", "CVS/Root", "_darcs/a"]
)
def test_hidden_files_and_version_control_are_left_out(place, tree):
    before = texts(Corpus([str(tree)]))
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).write_text("hidden")
    corpus = Corpus([str(tree)])
    assert texts(corpus) == before
    assert len(corpus.hidden) == 1
    assert texts(Corpus([str(tree)], hidden=True)).count("hidden") == 1
    assert texts(Corpus([str(tree / place)])) == ["hidden"]
    assert Corpus([str(tree)], exclude=[place.partition("/")[0]]).hidden == []


def test_a_hidden_output_inside_the_corpus_is_not_counted(tree):
    (tree / ".shards").mkdir()
    assert Corpus([str(tree)], without=tree / ".shards").hidden == []


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

"""`apr tokenize`: its output and exit codes."""

import gzip
import io
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from apr.cli import main

IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
TOKENIZER = IMPORTED / "hf_llama_tied"


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "src"
    (root / "test").mkdir(parents=True)
    for i in range(6):
        (root / f"m{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 20)
    (root / "test" / "t.py").write_text("assert False\n")
    (root / "README").write_text("readme\n")
    return root


@pytest.fixture
def encode(corpus, tmp_path):
    def run(*flags, tokenizer=TOKENIZER, output="out", name="encode"):
        return main(
            [
                *("tokenize", name, "--corpus", str(corpus), "--pattern", "*.py", "--exclude", "test/*"),
                *("--tokenizer", str(tokenizer), "--output", str(tmp_path / output), *flags),
            ]
        )

    return run


def test_a_directory_becomes_shards(encode, tmp_path, capsys):
    assert encode() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out'}: ")
    assert "from 6 documents in 1 shard" in captured.out
    assert captured.err == ""
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [Path(name).name for name in manifest["input_files"]] == [f"m{i}.py" for i in range(6)]


def test_the_names_of_other_tools_are_aliases(encode, tmp_path):
    assert encode() == 0
    assert encode("--num-workers", "2", name="encode-corpus", output="other") == 0
    assert (tmp_path / "out" / "shard-00000.bin").read_bytes() == (
        tmp_path / "other" / "shard-00000.bin"
    ).read_bytes()


def test_json_prints_the_manifest_and_nothing_else(encode, tmp_path, capsys):
    assert encode("--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("source", ["llama_tied.gguf", "qwen2_untied.gguf"])
def test_the_tokenizer_may_be_in_a_model_file(source, encode, tmp_path):
    model = tmp_path / "m.apr"
    assert main(["convert", str(IMPORTED / source), str(model)]) == 0
    assert encode(tokenizer=model) == 0
    assert encode(tokenizer=IMPORTED / source, output="gguf") == 0
    assert (tmp_path / "out" / "shard-00000.bin").read_bytes() == (
        tmp_path / "gguf" / "shard-00000.bin"
    ).read_bytes()


def test_the_end_of_a_chat_turn_is_not_the_end_of_text(encode, tmp_path, capsys):
    directory = tmp_path / "chat"
    directory.mkdir()
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 512, "content": "<|im_end|>"})
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert encode("--json", tokenizer=directory) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["eos_token_id"] == 0
    assert "<|im_end|>" in captured.err


def test_an_unknown_end_of_text_exits_with_2(encode, tmp_path, capsys):
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    spec["added_tokens"] = []
    spec["model"]["vocab"]["</s>"] = spec["model"]["vocab"].pop("<|endoftext|>", 0)
    directory = tmp_path / "bare"
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    assert encode(tokenizer=directory) == 2
    error = capsys.readouterr().err
    assert "--eos-token" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert encode("--eos-token", "</s>", tokenizer=directory) == 0
    assert encode("--eos-token", "<nope>", tokenizer=directory, output="other") == 2


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--resume", "--force"], 2),
        (["--shard-tokens", "0"], 2),
        (["--eos-policy", "sometimes"], 2),
        (["--corpus", "nowhere"], 3),
        (["--tokenizer", "nowhere"], 3),
        (["--pattern", "*.rs"], 5),
    ],
)
def test_a_refusal_is_one_line_with_an_exit_code(flags, code, encode, tmp_path, capsys):
    assert encode(*flags) == code
    if "sometimes" not in flags:
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_existing_shards_exit_with_5(encode, capsys):
    assert encode() == 0
    assert encode() == 5
    assert "--resume" in capsys.readouterr().err
    assert encode("--resume") == 0
    assert "already complete" in capsys.readouterr().out
    assert encode("--force") == 0


def interrupt(*_):
    raise KeyboardInterrupt


def interrupt_when(condition):
    """A progress bar that interrupts the encoding as Ctrl-C does, as soon as a condition holds."""

    @contextmanager
    def bar(_):
        def update(*_):
            if condition():
                raise KeyboardInterrupt

        yield update

    return bar


def test_an_interruption_exits_with_130_and_names_the_next_command(encode, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("apr.data.loaded_tokenizer.LoadedTokenizer.decode", interrupt)
    assert encode() == 130
    assert f"{tmp_path / 'out'}: no shard" in capsys.readouterr().err


def test_an_encoding_interrupted_in_its_first_shard_starts_over(encode, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patched:
        patched.setattr("apr.cli.tokenize._progress_bar", interrupt_when(lambda: True))
        assert encode() == 130
    assert "same command" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shard_count"] == 0
    assert encode() == 0
    assert encode() == 5


def test_skipped_documents_are_named(encode, corpus, capsys):
    (corpus / "latin.py").write_bytes(b"# \xe9\n")
    assert encode() == 0
    error = capsys.readouterr().err
    assert f"skipped: {corpus / 'latin.py'}: " in error
    assert "byte 2" in error
    assert "1 document skipped" in error
    assert encode("--strict", output="strict") == 5


def test_a_corpus_without_any_document_is_refused_with_the_first_reason(encode, corpus, tmp_path, capsys):
    (corpus / "latin.txt").write_bytes(b"\xe9")
    assert encode("--corpus", str(corpus / "latin.txt")) == 5
    error = capsys.readouterr().err
    assert "1 document skipped" in error
    assert f"{corpus / 'latin.txt'}: " in error
    assert not (tmp_path / "out").exists()


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


ROWS = {
    "c.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "c.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "c.jsonl.gz": lambda rows: gzip.compress(ROWS["c.jsonl"](rows), mtime=0),
    "c.json.gz": lambda rows: gzip.compress(ROWS["c.json"](rows), mtime=0),
    "c.parquet": parquet,
}


@pytest.mark.parametrize("flags", [[], ["--strict"], ["--estimate-only"]], ids=str)
@pytest.mark.parametrize("beside", [[], ["README"]], ids=["alone", "beside a text"])
@pytest.mark.parametrize("name", ROWS)
def test_a_field_that_no_row_has_is_refused_with_the_fields_that_are_there(
    name, beside, flags, encode, corpus, tmp_path, capsys
):
    rows = [{"body": f"line {i}", "url": "x"} for i in range(9)]
    (corpus / name).write_bytes(ROWS[name](rows))
    paths = [str(corpus / one) for one in (name, *beside)]
    assert encode("--corpus", *paths, *flags) == 5
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in (str(corpus / name), "'content'", "'body'", "'url'"))
    assert not (tmp_path / "out").exists()
    assert encode("--corpus", *paths, "--content-field", "body") == 0


@pytest.mark.parametrize("beside", [[], ["README"]], ids=["alone", "beside a text"])
def test_a_field_that_no_line_of_standard_input_has_is_refused(beside, encode, corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"body": "x"}\n' * 9)))
    assert encode("--corpus", *(str(corpus / name) for name in beside), "-") == 5
    assert "'body'" in capsys.readouterr().err


NO_OBJECTS = {
    "c.jsonl": gzip.compress(b'{"content": "x"}\n', mtime=0),
    "c.ndjson": b"plain text\nmore of it\n",
    "c.jsonl.gz": gzip.compress(b'"a"\n"b"\n[1]\n', mtime=0),
}


@pytest.mark.parametrize("beside", [[], ["README"]], ids=["alone", "beside a text"])
@pytest.mark.parametrize("name", NO_OBJECTS)
def test_a_field_that_no_line_can_have_is_refused(name, beside, encode, corpus, tmp_path, capsys):
    (corpus / name).write_bytes(NO_OBJECTS[name])
    assert encode("--corpus", *(str(corpus / one) for one in (name, *beside))) == 5
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{corpus / name}: no row is a JSON object" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ROWS)
def test_a_field_that_one_row_has_is_enough(name, encode, corpus, capsys):
    rows = [{"content": None if name.endswith("parquet") else 3, "id": i} for i in range(9)]
    (corpus / name).write_bytes(ROWS[name]([*rows, {"content": "text", "id": 9}]))
    assert encode("--corpus", str(corpus / name), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["total_documents"], made["skipped_documents"]) == (1, 9)


def test_a_vocabulary_is_not_trained_on_a_file_without_the_field(corpus, tmp_path, capsys):
    (corpus / "a.jsonl").write_text('{"body": "x"}\n')
    argv = ["tokenize", "train", "--corpus", str(corpus), "--vocab-size", "300"]
    assert main([*argv, "--output", str(tmp_path / "t")]) == 5
    assert "'body'" in capsys.readouterr().err


def test_hidden_files_are_counted_and_left_out_unless_asked_for(encode, corpus, capsys):
    for name in (".git/config.py", ".hg/a.py", "test2/.env.py", ".env", "CVS/a.py"):
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_text("secret = 1\n")
    assert encode("--json") == 0
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    # .env does not match the pattern: it would be left out anyway.
    assert (made["total_documents"], made["skipped_hidden"], made["skipped_documents"]) == (6, 4, 0)
    assert "4 hidden files and folders" in printed.err
    assert encode("--json", "--hidden", output="all") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["total_documents"], made["skipped_hidden"]) == (10, 0)
    assert encode("--corpus", str(corpus / ".git"), output="git") == 0
    assert encode("--corpus", str(corpus / ".env"), output="env") == 0
    assert encode("--corpus", str(corpus), "--pattern", ".env", output="none") == 5
    assert "--hidden" in capsys.readouterr().err


# What was passed, and a word of what was meant.
NOT_SHARDS = {
    "docs.jsonl": "apr tokenize encode",
    "out/shard-00000.bin": "pass its directory",
    "out/manifest.json": "pass the directory",
    "m.gguf": "model file",
    "model": "transformers model",
    "empty": "",
    "nowhere": "No such file",
}
NOT_A_TOKENIZER = {
    "docs.jsonl": "file of texts",
    "out": "token shards",
    "out/shard-00000.bin": "token shard",
    "model/model.safetensors": "model file",
    "model/tokenizer_config.json": "pass its directory",
    "model/special_tokens_map.json": "pass its directory",
    "pair/vocab.json": "pass its directory",
    "pair/merges.txt": "pass its directory",
    "tokenizer.model": "AutoTokenizer",
    "qwen.tiktoken": "AutoTokenizer",
    "llama": "AutoTokenizer",
    "empty": "tokenizer.json",
    "nowhere": "No such file",
}


@pytest.fixture
def inputs(encode, tmp_path, capsys):
    import shutil

    assert encode() == 0
    (tmp_path / "docs.jsonl").write_text('{"content": "x"}\n')
    (tmp_path / "empty").mkdir()
    shutil.copy(IMPORTED / "llama_tied.gguf", tmp_path / "m.gguf")
    shutil.copytree(TOKENIZER, tmp_path / "model")
    (tmp_path / "model" / "special_tokens_map.json").write_text("{}")
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "pair" / "merges.txt").write_text("")
    (tmp_path / "llama").mkdir()
    for name in ("tokenizer.model", "qwen.tiktoken", "llama/tokenizer.model"):
        (tmp_path / name).write_bytes(b"\x0a\x0e\xff")
    capsys.readouterr()
    return tmp_path


@pytest.mark.parametrize("command", ["decode", "merge"])
@pytest.mark.parametrize("name", NOT_SHARDS)
def test_what_is_no_shard_directory_is_named(name, command, inputs, capsys):
    more = ["--output", str(inputs / "merged")] if command == "merge" else []
    assert main(["tokenize", command, str(inputs / name), *more]) in (3, 5)
    error = capsys.readouterr().err
    assert str(inputs / name) in error
    assert NOT_SHARDS[name] in error
    assert len(error.splitlines()) == 1
    assert not (inputs / "merged").exists()


def test_a_whole_encoding_is_not_merged(inputs, capsys):
    assert main(["tokenize", "merge", str(inputs / "out"), "--output", str(inputs / "merged")]) == 5
    assert "whole encoding" in capsys.readouterr().err


@pytest.mark.parametrize("name", NOT_A_TOKENIZER)
def test_what_is_no_tokenizer_is_named(name, inputs, encode, capsys):
    assert encode(tokenizer=inputs / name, output="again") in (3, 4)
    error = capsys.readouterr().err
    assert str(inputs / name) in error
    assert NOT_A_TOKENIZER[name] in error
    assert len(error.splitlines()) == 1
    assert not (inputs / "again").exists()


@pytest.mark.parametrize("command", ["encode", "train"])
def test_an_output_that_is_a_file_is_refused(command, encode, corpus, capsys):
    output = corpus / "README"
    if command == "encode":
        assert encode("--output", str(output)) == 3
    else:
        argv = ["tokenize", "train", "--corpus", str(corpus), "--vocab-size", "300"]
        assert main([*argv, "--output", str(output)]) == 3
    error = capsys.readouterr().err
    assert f"{output}: a file has this name" in error
    assert len(error.splitlines()) == 1
    assert output.read_text() == "readme\n"


@pytest.mark.parametrize("estimate", [[], ["--estimate-only"]], ids=["encode", "estimate"])
@pytest.mark.parametrize(
    "name", ["out", "out/shard-00000.bin", "out/manifest.json", "m.gguf", "m.safetensors", "m.apr"]
)
def test_a_corpus_that_is_no_text_is_named(name, estimate, encode, tmp_path, capsys):
    assert encode() == 0
    (tmp_path / "m.gguf").write_bytes((IMPORTED / "llama_tied.gguf").read_bytes())
    (tmp_path / "m.safetensors").write_bytes((TOKENIZER / "model.safetensors").read_bytes())
    assert main(["convert", str(TOKENIZER), str(tmp_path / "m.apr")]) == 0
    capsys.readouterr()
    assert encode("--corpus", str(tmp_path / name), *estimate, output="again") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert "token shard" in error or f"({name[2:]})" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "again").exists()


def test_an_estimate_is_exact_and_writes_nothing(encode, tmp_path, capsys):
    assert encode("--estimate-only", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert encode("--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert estimate["documents"] == made["total_documents"]
    assert estimate["tokens"] == made["total_tokens"]


def test_standard_input_is_encoded_but_not_estimated(tmp_path, monkeypatch, capsys):
    lines = b"".join(json.dumps({"content": f"line {i}\n" * 9}).encode() + b"\n" for i in range(9))
    for flags, code in (([], 0), (["--estimate-only"], 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        argv = ["tokenize", "encode", "--corpus", "-", "--tokenizer", str(TOKENIZER)]
        assert main([*argv, "--output", str(tmp_path / "stdin"), "--json", *flags]) == code
    made, refused = map(json.loads, capsys.readouterr().out.splitlines())
    assert made["total_documents"] == 9
    assert "--estimate-only" in refused["error"]


def test_standard_input_cannot_be_resumed(tmp_path, monkeypatch, capsys):
    argv = ["tokenize", "encode", "--corpus", "-", "--tokenizer", str(TOKENIZER), "--shard-tokens", "20"]
    argv += ["--output", str(tmp_path / "out")]

    def run(texts, *flags):
        lines = b"".join(json.dumps({"content": text}).encode() + b"\n" for text in texts)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return main([*argv, *flags])

    monkeypatch.setattr("apr.data.corpus.BATCH_BYTES", 100)
    with monkeypatch.context() as patched:
        two_shards = interrupt_when(lambda: len(list((tmp_path / "out").glob("*.bin"))) > 1)
        patched.setattr("apr.cli.tokenize._progress_bar", two_shards)
        assert run([f"line {i}\n" * 9 for i in range(30)]) == 130
    assert "use --force" in capsys.readouterr().err
    kept = (tmp_path / "out" / "manifest.json").read_bytes()
    for texts in (["fewer"], ["another\n" * 9] * 90):
        assert run(texts, "--resume") == 2
        error = capsys.readouterr().err
        assert "standard input" in error
        assert len(error.splitlines()) == 1
    assert (tmp_path / "out" / "manifest.json").read_bytes() == kept
    assert run(["a whole text"], "--force") == 0
    assert run(["a whole text"], "--resume") == 2


def test_decode_prints_the_text_of_shards(encode, tmp_path, capsys):
    assert encode("--shard-tokens", "50") == 0
    capsys.readouterr()
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--tokenizer", str(TOKENIZER)]
    assert main([*argv, "--tokens", "100000"]) == 0
    text = capsys.readouterr().out
    expected = [f"def f{i}(x):\n    return x + {i}\n" * 20 for i in range(6)]
    assert text == "<|endoftext|>".join(expected) + "\n"
    assert main([*argv, "--start", "3", "--tokens", "5", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)
    assert len(sample["ids"]) == 5
    assert sample["text"] in text
    assert main([*argv, "--start", "100000"]) == 2


def test_decode_uses_the_tokenizer_of_the_manifest_and_accepts_unfinished_shards(encode, tmp_path, capsys):
    assert encode("--shard-tokens", "50") == 0
    path = tmp_path / "out" / "manifest.json"
    made = json.loads(path.read_bytes())
    capsys.readouterr()

    def decoded(**changes):
        path.write_text(json.dumps(made | changes))
        code = main(["tokenize", "decode", str(tmp_path / "out"), "--count", "9"])
        return code, capsys.readouterr()

    code, printed = decoded()
    assert (code, printed.out[:7]) == (0, "def f0(")
    first = made["shards"][:1]
    short = {"shards": first, "shard_count": 1, "total_tokens": first[0]["tokens"], "complete": False}
    short["total_documents"] = first[0]["documents"]
    assert decoded(**short) == (code, printed)
    for changes, exit_code, says in (
        ({"tokenizer_sha256": "0" * 64, "tokenizer_identity": None}, 5, "tokenizer_sha256"),
        ({"tokenizer_dir": str(tmp_path / "gone")}, 2, str(tmp_path / "gone")),
        ({"tokenizer_dir": None}, 2, "--tokenizer"),
    ):
        code, printed = decoded(**changes)
        assert code == exit_code
        assert says in printed.err


def test_decode_with_another_vocabulary_is_refused(encode, tmp_path, capsys):
    assert encode() == 0
    argv = ["tokenize", "train", "--corpus", str(tmp_path / "src"), "--vocab-size", "258"]
    assert main([*argv, "--output", str(tmp_path / "small")]) == 0
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "small")]
    assert main([*argv, "--tokens", "2000"]) == 5
    error = capsys.readouterr().err
    assert str(tmp_path / "small") in error
    assert str(TOKENIZER) in error


def test_decode_locates_an_id_that_is_not_in_the_vocabulary(encode, tmp_path, capsys):
    assert encode("--shard-tokens", "50") == 0
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--start", "0", "--count", "90"]
    capsys.readouterr()
    assert main(argv) == 0
    before = capsys.readouterr().out
    shard = tmp_path / "out" / "shard-00000.bin"
    ids = np.fromfile(shard, "<u4")
    ids[3] = 2**32 - 1
    ids.tofile(shard)
    # As of an encoder that records no hashes: a shard that lost its recorded one is refused.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    rows = [row | {"sha256": None} for row in manifest["shards"]]
    (tmp_path / "out" / "manifest.json").write_text(
        json.dumps(manifest | {"shards": rows, "corpus_sha256": None})
    )
    assert main(argv) == 0
    printed = capsys.readouterr()
    text, odd, rest = printed.out.partition("<id 4294967295>")
    assert odd
    assert before.startswith(text)
    assert before.endswith(rest)
    assert f"{shard}: id 4294967295 at byte 12 (token 3)" in printed.err


def test_counts_of_one_are_singular(tmp_path, capsys):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("")
    argv = ["tokenize", "encode", "--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "out")]
    argv += ["--corpus", str(tmp_path), "--pattern", "*.txt"]
    assert main(argv) == 0
    assert "out: 1 token from 2 documents in 1 shard, from 0 bytes" in capsys.readouterr().out
    assert main([*argv, "--resume"]) == 0
    assert "out: 1 token from 2 documents in 1 shard, already complete" in capsys.readouterr().out
    assert main(["repair-manifest", str(tmp_path / "out")]) == 0
    assert "1 shard, 1 token," in capsys.readouterr().out


def test_standard_input_can_be_given_only_once(tmp_path, capsys):
    argv = ["tokenize", "encode", "--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "out")]
    assert main([*argv, "--corpus", "-", "-"]) == 2
    assert "standard input" in capsys.readouterr().err


def test_train_prints_a_summary(corpus, tmp_path, capsys):
    argv = ["tokenize", "train", "--corpus", str(corpus), "--pattern", "*.py", "--vocab-size", "280"]
    assert main([*argv, "--output", str(tmp_path / "t"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["vocab_size"], made["documents"]) == (280, 7)
    assert main([*argv, "--output", str(tmp_path / "t")]) == 5
    assert main([*argv[:-1], "100", "--output", str(tmp_path / "u")]) == 2


def test_the_module_runs_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "apr.tokenize", "encode", "--help"], capture_output=True, text=True, check=True
    )
    assert "Example: apr tokenize encode" in done.stdout


@pytest.mark.parametrize("shards", [1, 3])
def test_a_resumed_encoding_reports_totals_of_the_whole(tmp_path, capsys, shards):
    """Documents, tokens and bytes of text of the whole corpus, and the rate of what was encoded now."""
    from apr.data.encode import encode_corpus
    from apr.data.encode_options import EncodeOptions

    # Some with a byte order mark, which only Python reads.
    texts = [f"Document {i}, naïve: {i * i * 31} and {'more ' * (i % 9)}" for i in range(3000)]
    lines = [
        ("\ufeff" if i % 50 == 7 else "") + json.dumps({"content": text}) for i, text in enumerate(texts)
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines))
    options = {"corpus": (str(corpus),), "tokenizer": TOKENIZER, "shard_tokens": 9000}

    def stop(progress):
        if progress.shards >= shards:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(EncodeOptions(output=tmp_path / "out", **options), stop)
    argv = ["tokenize", "encode", "--corpus", str(corpus), "--tokenizer", str(TOKENIZER)]
    argv += ["--shard-tokens", "9000", "--output"]
    assert main([*argv, str(tmp_path / "whole")]) == 0
    whole = capsys.readouterr().out
    assert main([*argv, str(tmp_path / "out"), "--resume"]) == 0
    resumed = capsys.readouterr().out
    nbytes = sum(len(text.encode()) for text in texts)
    contents = whole.split(": ", 1)[1].split(" in ")[0]
    assert contents in resumed
    total = f"from {nbytes / 1000:.1f} kB of text"
    assert total in whole
    assert total in resumed
    now = float(resumed.split("this run encoded ")[1].split(" kB")[0])
    assert 0 < now < nbytes / 1000
    made = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "whole")]
    assert [manifest["text_bytes"] for manifest in made] == [nbytes, nbytes]

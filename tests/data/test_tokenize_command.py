"""`apr tokenize`: what it prints, where, and how it ends."""

import io
import json
import subprocess
import sys
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


def test_a_directory_becomes_shards_and_says_so(encode, tmp_path, capsys):
    assert encode() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out'}: ")
    assert "of 6 documents in 1 shard" in captured.out
    assert captured.err == ""
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [Path(name).name for name in manifest["input_files"]] == [f"m{i}.py" for i in range(6)]


def test_the_ecosystems_name_is_an_alias_and_so_is_its_flag(encode, tmp_path):
    assert encode() == 0
    assert encode("--num-workers", "2", name="encode-corpus", output="other") == 0
    assert (tmp_path / "out" / "shard-00000.bin").read_bytes() == (
        tmp_path / "other" / "shard-00000.bin"
    ).read_bytes()


def test_json_is_alone_on_standard_output_and_is_the_manifest(encode, tmp_path, capsys):
    assert encode("--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("source", ["llama_tied.gguf", "qwen2_untied.gguf"])
def test_the_tokenizer_inside_a_model_file_is_taken(source, encode, tmp_path):
    model = tmp_path / "m.apr"
    assert main(["convert", str(IMPORTED / source), str(model)]) == 0
    assert encode(tokenizer=model) == 0
    assert encode(tokenizer=IMPORTED / source, output="gguf") == 0
    assert (tmp_path / "out" / "shard-00000.bin").read_bytes() == (
        tmp_path / "gguf" / "shard-00000.bin"
    ).read_bytes()


def test_a_chat_end_is_passed_over_and_said(encode, tmp_path, capsys):
    directory = tmp_path / "chat"
    directory.mkdir()
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 512, "content": "<|im_end|>"})
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert encode("--json", tokenizer=directory) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["eos_token_id"] == 0
    assert "the configuration names the chat end <|im_end|>" in captured.err


def test_no_known_end_of_text_exits_2(encode, tmp_path, capsys):
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
def test_what_cannot_be_done_is_one_line_and_a_code(flags, code, encode, tmp_path, capsys):
    assert encode(*flags) == code
    if "sometimes" not in flags:
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_shards_that_are_there_exit_5(encode, capsys):
    assert encode() == 0
    assert encode() == 5
    assert "--resume" in capsys.readouterr().err
    assert encode("--resume") == 0
    assert "all there already" in capsys.readouterr().out
    assert encode("--force") == 0


def test_an_interruption_exits_130_and_says_how_to_go_on(encode, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("apr.data.tokenizers.LoadedTokenizer.decode", interrupted)
    assert encode() == 130
    assert "no shard was whole yet" in capsys.readouterr().err


def test_what_was_cut_off_in_its_first_shard_is_begun_again_by_the_same_command(
    encode, monkeypatch, tmp_path, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("apr.cli.tokenize._speed", interrupted)
        assert encode() == 130
    assert "no shard was whole yet: run the same command again" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shard_count"] == 0
    assert encode() == 0
    assert encode() == 5


def test_documents_that_are_skipped_are_named(encode, corpus, capsys):
    (corpus / "latin.py").write_bytes(b"# \xe9\n")
    assert encode() == 0
    error = capsys.readouterr().err
    assert f"skipped: {corpus / 'latin.py'}: no UTF-8 at byte 2" in error
    assert "1 document skipped in all" in error
    assert encode("--strict", output="strict") == 5


def test_a_corpus_of_which_nothing_is_a_text_says_why(encode, corpus, tmp_path, capsys):
    (corpus / "a.jsonl").write_text('{"text": "x"}\n')
    assert encode("--corpus", str(corpus / "a.jsonl")) == 5
    error = capsys.readouterr().err
    assert f"1 document skipped; the first, {corpus / 'a.jsonl'}:1: no text under 'content'" in error
    assert not (tmp_path / "out").exists()


def test_an_estimate_is_near_and_writes_nothing(encode, tmp_path, capsys):
    assert encode("--estimate-only", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert encode("--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert estimate["documents"] == made["total_documents"]
    assert estimate["tokens"] == pytest.approx(made["total_tokens"], rel=0.05)


def test_standard_input_is_encoded_but_not_estimated(tmp_path, monkeypatch, capsys):
    lines = b"".join(json.dumps({"content": f"line {i}\n" * 9}).encode() + b"\n" for i in range(9))
    for flags, code in (([], 0), (["--estimate-only"], 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        argv = ["tokenize", "encode", "--corpus", "-", "--tokenizer", str(TOKENIZER)]
        assert main([*argv, "--output", str(tmp_path / "stdin"), "--json", *flags]) == code
    made, refused = map(json.loads, capsys.readouterr().out.splitlines())
    assert made["total_documents"] == 9
    assert "could not be read again" in refused["error"]


def test_standard_input_is_not_resumed_for_it_cannot_be_told_from_another(tmp_path, monkeypatch, capsys):
    argv = ["tokenize", "encode", "--corpus", "-", "--tokenizer", str(TOKENIZER), "--shard-tokens", "20"]
    argv += ["--output", str(tmp_path / "out")]

    def run(texts, *flags):
        lines = b"".join(json.dumps({"content": text}).encode() + b"\n" for text in texts)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return main([*argv, *flags])

    monkeypatch.setattr("apr.data.corpus._BATCH_BYTES", 100)
    with monkeypatch.context() as patched:
        patched.setattr("apr.cli.tokenize._speed", interrupted_when_two_shards_are_there)
        assert run([f"line {i}\n" * 9 for i in range(30)]) == 130
    assert "standard input is not resumed, --force encodes anew" in capsys.readouterr().err
    kept = (tmp_path / "out" / "manifest.json").read_bytes()
    for texts in (["fewer"], ["another\n" * 9] * 90):
        assert run(texts, "--resume") == 2
        error = capsys.readouterr().err
        assert "standard input" in error
        assert len(error.splitlines()) == 1
    assert (tmp_path / "out" / "manifest.json").read_bytes() == kept
    assert run(["a whole text"], "--force") == 0
    assert run(["a whole text"], "--resume") == 2


def interrupted_when_two_shards_are_there(at):
    if at.shards > 1:
        raise KeyboardInterrupt
    return lambda _: ""


def test_decode_shows_the_text_of_shards(encode, tmp_path, capsys):
    assert encode("--shard-tokens", "50") == 0
    capsys.readouterr()
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--tokenizer", str(TOKENIZER)]
    assert main([*argv, "--tokens", "100000"]) == 0
    text = capsys.readouterr().out
    expected = [f"def f{i}(x):\n    return x + {i}\n" * 20 for i in range(6)]
    assert text == "<|endoftext|>".join(expected) + "\n"
    assert main([*argv, "--start", "3", "--tokens", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["ids"]) == 5
    assert found["text"] in text
    assert main([*argv, "--start", "100000"]) == 2


def test_decode_takes_the_tokenizer_of_the_manifest_and_shards_that_are_not_finished(
    encode, tmp_path, capsys
):
    assert encode("--shard-tokens", "50") == 0
    path = tmp_path / "out" / "manifest.json"
    made = json.loads(path.read_bytes())
    capsys.readouterr()

    def decoded(**changes):
        path.write_text(json.dumps(made | changes))
        code = main(["tokenize", "decode", str(tmp_path / "out"), "--count", "9"])
        return code, capsys.readouterr()

    code, said = decoded()
    assert (code, said.out[:7]) == (0, "def f0(")
    first = made["shards"][:1]
    short = {"shards": first, "shard_count": 1, "total_tokens": first[0]["tokens"], "complete": False}
    short["total_documents"] = first[0]["documents"]
    assert decoded(**short) == (code, said)
    for changes, exit_code, says in (
        ({"tokenizer_sha256": "0" * 64}, 5, "its tokenizer_sha256 differs"),
        ({"tokenizer_dir": str(tmp_path / "gone")}, 2, f"{tmp_path / 'gone'}: not there"),
        ({"tokenizer_dir": None}, 2, "names no tokenizer"),
    ):
        code, said = decoded(**changes)
        assert code == exit_code
        assert says in said.err


def test_decode_with_another_vocabulary_is_refused(encode, tmp_path, capsys):
    assert encode() == 0
    argv = ["tokenize", "train", "--corpus", str(tmp_path / "src"), "--vocab-size", "258"]
    assert main([*argv, "--output", str(tmp_path / "small")]) == 0
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "small")]
    assert main([*argv, "--tokens", "2000"]) == 2
    assert "name the tokenizer they were made with" in capsys.readouterr().err


def test_decode_shows_an_id_beyond_the_vocabulary_and_says_where_it_is(encode, tmp_path, capsys):
    assert encode("--shard-tokens", "50") == 0
    argv = ["tokenize", "decode", str(tmp_path / "out"), "--start", "0", "--count", "90"]
    capsys.readouterr()
    assert main(argv) == 0
    before = capsys.readouterr().out
    shard = tmp_path / "out" / "shard-00000.bin"
    ids = np.fromfile(shard, "<u4")
    ids[3] = 2**32 - 1
    ids.tofile(shard)
    assert main(argv) == 0
    said = capsys.readouterr()
    text, odd, rest = said.out.partition("<id 4294967295>")
    assert odd
    assert before.startswith(text)
    assert before.endswith(rest)
    assert f"{shard}: id 4294967295 at byte 12 (token 3) is beyond" in said.err


def test_counts_of_one_and_texts_of_nothing_are_said_as_they_are(tmp_path, capsys):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("")
    argv = ["tokenize", "encode", "--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "out")]
    argv += ["--corpus", str(tmp_path), "--pattern", "*.txt"]
    assert main(argv) == 0
    assert "out: 1 token of 2 documents in 1 shard, from 0 bytes of text" in capsys.readouterr().out
    assert main([*argv, "--resume"]) == 0
    assert "out: 1 token of 2 documents in 1 shard, all there already" in capsys.readouterr().out
    assert main(["repair-manifest", str(tmp_path / "out")]) == 0
    assert "1 shard, 1 token," in capsys.readouterr().out


def test_standard_input_is_named_once(tmp_path, capsys):
    argv = ["tokenize", "encode", "--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "out")]
    assert main([*argv, "--corpus", "-", "-"]) == 2
    assert "standard input (-) is named twice" in capsys.readouterr().err


def test_train_says_what_it_made(corpus, tmp_path, capsys):
    argv = ["tokenize", "train", "--corpus", str(corpus), "--pattern", "*.py", "--vocab-size", "280"]
    assert main([*argv, "--output", str(tmp_path / "t"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["vocab_size"], made["documents"]) == (280, 7)
    assert main([*argv, "--output", str(tmp_path / "t")]) == 5
    assert main([*argv[:-1], "100", "--output", str(tmp_path / "u")]) == 2


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "apr.tokenize", "encode", "--help"], capture_output=True, text=True, check=True
    )
    assert "Example: apr tokenize encode" in done.stdout

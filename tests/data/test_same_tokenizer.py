"""Another tokenizer of the same size is refused wherever it meets a model, shards or a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
from tests.data.directories import TOKENIZER, edit_json, file_bytes, read_json

import apr
from apr.cli import main

MODEL = TOKENIZER.parent / "from_gguf_llama_tied.apr"
DOCS = [str(path) for path in sorted(Path(__file__).parents[2].glob("docs/*.md"))[:4]]


@pytest.fixture
def other(tmp_path):
    """A tokenizer of the same size: two tokens have each other's ids."""
    path = tmp_path / "other"
    path.mkdir()
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    ids = spec["model"]["vocab"]
    first, second = list(ids)[400:402]
    ids[first], ids[second] = ids[second], ids[first]
    (path / "tokenizer.json").write_text(json.dumps(spec))
    shutil.copy(TOKENIZER / "tokenizer_config.json", path)
    return path


@pytest.fixture
def encode(tmp_path, capsys):
    def run(name, tokenizer=TOKENIZER, *more, corpus=DOCS[:2]):
        argv = ["tokenize", "encode", "--corpus", *corpus, "--tokenizer", str(tokenizer)]
        assert main([*argv, "--output", str(tmp_path / name), *more]) == 0
        capsys.readouterr()
        return tmp_path / name

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused with the names of both, and return its only line of error."""

    def run(arguments, *names):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 5
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        (line,) = lines
        for name in names:
            assert str(name) in line
        assert "--force to" not in line
        return line

    return run


def pretrain(tmp_path, dataset, *more):
    argv = [
        "pretrain",
        "--init",
        MODEL,
        "--dataset",
        dataset,
        "--run-dir",
        tmp_path / "run",
        "--device",
        "cpu",
    ]
    argv += ["--num-steps", "2", "--steps-per-epoch", "2", "--batch-size", "2", "--seq-length", "32"]
    return [*argv, "--val-tokens", "64", *more]


def run(arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("more", [[], ["--plan"]])
def test_pretrain_compares_all_of_them(tmp_path, other, encode, refused, more):
    right, wrong = encode("right"), encode("wrong", other, corpus=DOCS[2:])
    before = file_bytes(wrong)
    refused(pretrain(tmp_path, wrong, *more), MODEL, wrong, other)
    refused(pretrain(tmp_path, right, "--val-dataset", wrong, *more), MODEL, wrong, other)
    refused(pretrain(tmp_path, right, "--tokenizer", other, *more), MODEL, other)
    scratch = [one for one in pretrain(tmp_path, right, *more) if one not in ("--init", MODEL)]
    scratch += ["--mode", "from-scratch", "--arch", tmp_path / "arch.yaml"]
    (tmp_path / "arch.yaml").write_text(
        "model_type: llama\nhidden_size: 32\nnum_layers: 1\nnum_heads: 2\nnum_kv_heads: 1\n"
        "intermediate_size: 64\nmax_position_embeddings: 64\nrope_theta: 10000.0\nrms_norm_eps: 1.0e-6\n"
        "tie_word_embeddings: true\n"
    )
    refused([*scratch, "--tokenizer", other], right, other)
    refused([*scratch, "--val-dataset", wrong], right, wrong)
    assert file_bytes(wrong) == before
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_has_the_identity_of_its_shards(tmp_path, other, encode, refused, capsys):
    with apr.load(MODEL) as file:
        bare = {key: value for key, value in file.metadata.items() if not key.startswith("tokenizer.")}
        apr.save({**file}, tmp_path / "bare.apr", bare)
    right, wrong = encode("right"), encode("wrong", other, corpus=DOCS[2:])
    argv = [tmp_path / "bare.apr" if one == MODEL else one for one in pretrain(tmp_path, right)]
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert out.count("tokenizer: not recorded in") == 1
    assert "bare.apr" in out[out.index("not recorded in") :].splitlines()[0]
    (checkpoint,) = (tmp_path / "run" / "ckpt").glob("*.apr")
    refused(["evaluate", checkpoint, "--dataset", wrong, "--device", "cpu"], checkpoint, wrong, other)
    assert run(["evaluate", checkpoint, "--dataset", right, "--device", "cpu"]) == 0
    assert "note:" not in capsys.readouterr().err
    refused([*argv, "--resume", "--num-steps", "4", "--extend", "--tokenizer", other], other)
    assert run([*argv, "--resume", "--num-steps", "4", "--extend"]) == 0


def test_other_forms_of_the_same_tokenizer_are_accepted(tmp_path, encode, capsys):
    shards = encode("shards", TOKENIZER)
    gguf = TOKENIZER.parent / "llama_tied.gguf"
    assert (
        run(pretrain(tmp_path, encode("by-model", gguf), "--val-dataset", encode("v", corpus=DOCS[2:]))) == 0
    )
    assert "not recorded" not in capsys.readouterr().out
    assert run(["evaluate", MODEL, "--dataset", shards, "--device", "cpu", "--seq-length", "32"]) == 0
    before = read_json(shards)
    assert before["scan"]
    for tokenizer in (TOKENIZER, MODEL, gguf):
        assert run(["tokenize", "decode", shards, "--tokenizer", tokenizer, "--count", "4"]) == 0
        assert run(["repair-manifest", shards, "--tokenizer", tokenizer, "--verify"]) == 0
        assert run(["generate", MODEL, "--tokenizer", tokenizer, "--prompt", "a", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().err.count("note: tokenizer") == 0
    assert read_json(shards) == before


def test_evaluate_decode_repair_and_generate_compare(other, encode, refused):
    right, wrong = encode("right"), encode("wrong", other)
    before = file_bytes(right)
    refused(["evaluate", MODEL, "--dataset", wrong, "--device", "cpu"], MODEL, wrong, other)
    refused(["tokenize", "decode", right, "--tokenizer", other], right, TOKENIZER, other)
    for more in ([], ["--verify"], ["--verify", "--dry-run"]):
        refused(["repair-manifest", right, "--tokenizer", other, *more], right, TOKENIZER, other)
    refused(["generate", MODEL, "--tokenizer", other, "--prompt", "a"], MODEL, other)
    assert file_bytes(right) == before


@pytest.mark.parametrize("complete", [True, False])
def test_a_resumed_encoding_names_both(other, encode, capsys, complete):
    output = encode("out", TOKENIZER, "--shard-tokens", "1000")
    if not complete:
        rows = read_json(output)["shards"][:2]
        counts = {
            key: sum(row[name] for row in rows)
            for key, name in (("total_tokens", "tokens"), ("total_documents", "documents"))
        }
        edit_json(output, complete=False, shards=rows, shard_count=2, **counts)
    before = file_bytes(output)
    argv = [
        "tokenize",
        "encode",
        "--corpus",
        *DOCS[:2],
        "--output",
        output,
        "--shard-tokens",
        "1000",
        "--resume",
    ]
    assert run([*argv, "--tokenizer", other]) == 5
    line = capsys.readouterr().err
    assert str(other) in line
    assert str(TOKENIZER) in line
    assert file_bytes(output) == before
    if complete:
        assert run([*argv, "--tokenizer", MODEL]) == 0


def test_parts_of_two_tokenizers_are_not_joined(tmp_path, other, encode, refused):
    parts = [encode("part-1", TOKENIZER, "--part", "1/2"), encode("part-2", other, "--part", "2/2")]
    refused(["tokenize", "merge", *parts, "--output", tmp_path / "out"], *parts, TOKENIZER, other)
    parts[1] = encode("part-3", MODEL, "--part", "2/2")
    assert run(["tokenize", "merge", *parts, "--output", tmp_path / "out"]) == 0
    assert encode("whole", TOKENIZER)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.bin")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.bin")
    }


@pytest.mark.parametrize("record", ["bare", "path and hash", "path is gone"])
def test_manifests_without_an_identity(tmp_path, other, encode, refused, capsys, record):
    """Of an earlier version or another producer: what they record decides, or a line says that."""
    wrong = encode("wrong", other)
    edit_json(wrong, tokenizer_identity=None)
    if record == "bare":
        edit_json(wrong, tokenizer_dir=None, tokenizer_sha256=None)
    elif record == "path is gone":
        edit_json(wrong, tokenizer_dir=str(tmp_path / "gone"))
    argv = pretrain(tmp_path, wrong)
    if record == "path and hash":
        refused(argv, MODEL, wrong, other)
        refused(["repair-manifest", wrong, "--tokenizer", TOKENIZER], wrong, TOKENIZER, other)
        return
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert out.count("tokenizer: not recorded in") == 1
    assert run(["evaluate", MODEL, "--dataset", wrong, "--device", "cpu", "--seq-length", "32"]) == 0
    assert capsys.readouterr().err.count("not recorded in") == 1
    # The tokenizer that encoded them fills it in, and then the model is another one's.
    assert run(["repair-manifest", wrong, "--tokenizer", other]) == 0
    refused(["evaluate", MODEL, "--dataset", wrong, "--device", "cpu"], MODEL, wrong, other)


def test_a_wrong_tokenizer_of_another_size_has_one_line(tmp_path, encode, refused):
    small = tmp_path / "small"
    assert run(["tokenize", "train", "--corpus", DOCS[0], "--vocab-size", "300", "--output", small]) == 0
    right, wrong = encode("right"), encode("wrong", small, corpus=DOCS[2:])
    refused(pretrain(tmp_path, wrong), MODEL, wrong, small)
    refused(["tokenize", "decode", right, "--tokenizer", small, "--count", "1000"], right, small)
    refused(["repair-manifest", right, "--tokenizer", small, "--verify"], right, small)

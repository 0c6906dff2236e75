"""What a repair keeps of an existing manifest, and what it compares with the ids."""

import json

import numpy as np
import pytest
from tests.data.directories import TOKENIZER, edit_json, file_bytes, read_json

from apr.cli import main
from apr.data import ShardDir, repair
from apr.data.output_dir import lock_output


def test_shards_of_the_other_byte_order_are_refused(directory, capsys):
    for path in directory.glob("*.bin"):
        ids = np.fromfile(path, "<u4")
        (ids | 256).byteswap().tofile(path)
    before = file_bytes(directory)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    printed = capsys.readouterr()
    assert "NOT suitable" in printed.out
    assert "shard-00000.bin: id " in printed.err
    assert file_bytes(directory) == before


def test_nothing_is_repaired_while_an_encoding_is_writing(directory, capsys):
    before = file_bytes(directory)
    with lock_output(directory):
        assert main(["repair-manifest", str(directory)]) == 5
        assert str(directory) in capsys.readouterr().err
        assert main(["repair-manifest", str(directory), "--dry-run"]) == 0
    assert file_bytes(directory) == before
    assert main(["repair-manifest", str(directory / "none")]) == 3
    assert not (directory / "none").exists()


def recorded(directory):
    """A manifest as an encoder writes it, with a hash and a count of documents for each shard."""
    repair(directory, verify=True)
    hashes = {row["name"]: row["sha256"] for row in read_json(directory)["scan"]["shards"]}
    rows = [
        {"name": path.name, "tokens": path.stat().st_size // 4, "documents": 4, "sha256": hashes[path.name]}
        for path in sorted(directory.glob("*.bin"))
    ]
    edit_json(directory, vocab_size=512, content_field="text", shards=rows, total_documents=12)
    return rows


def test_force_replaces_only_what_is_wrong(directory, capsys):
    rows = recorded(directory)
    np.arange(1, 201, dtype="<u4").tofile(directory / "shard-00002.bin")
    first = (directory / "shard-00000.bin").read_bytes()
    damaged = bytes([first[0] ^ 1]) + first[1:]
    (directory / "shard-00000.bin").write_bytes(damaged)
    assert main(["repair-manifest", str(directory)]) == 5
    assert main(["repair-manifest", str(directory), "--verify", "--force"]) == 5
    printed = capsys.readouterr().err
    assert "shard-00000.bin: changed" in printed
    assert "shard-00002.bin: changed" not in printed
    (directory / "shard-00000.bin").write_bytes(first)
    assert main(["repair-manifest", str(directory), "--force"]) == 0
    made = read_json(directory)
    assert made["shards"] == [*rows[:2], {"name": "shard-00002.bin", "tokens": 200}]
    assert (made["vocab_size"], made["content_field"], made["total_tokens"]) == (512, "text", 900)
    assert not {"total_documents", "corpus_sha256", "scan"} & made.keys()
    assert ShardDir(directory).scan().total_tokens == 900


def test_a_shard_that_the_manifest_does_not_count_yet_is_kept(directory):
    rows = recorded(directory)
    edit_json(directory, complete=False, shard_count=2, total_tokens=700, shards=rows[:2], total_documents=8)
    assert repair(directory).outcome == "written"
    made = read_json(directory)
    assert (made["complete"], made["truncated"], made["total_tokens"]) == (True, True, 850)
    assert made["shards"] == [*rows[:2], {"name": "shard-00002.bin", "tokens": 150}]
    assert "total_documents" not in made
    assert ShardDir(directory).total_tokens == 850


def test_the_tokenizer_fills_null_keys_and_must_match_the_others(directory, capsys):
    repair(directory)
    asked = ["repair-manifest", str(directory), "--tokenizer", str(TOKENIZER)]
    assert main(asked) == 0
    assert read_json(directory)["vocab_size"] == 512
    assert read_json(directory)["tokenizer_dir"] == str(TOKENIZER)
    before = file_bytes(directory)
    assert main(asked) == 0
    assert file_bytes(directory) == before
    for change in ({"vocab_size": 600}, {"tokenizer_sha256": "0" * 64, "tokenizer_identity": None}):
        edit_json(directory, **(json.loads(before["manifest.json"]) | change))
        capsys.readouterr()
        assert main(asked) == 5
        assert next(iter(change)) in capsys.readouterr().err


def test_unknown_text_is_judged_without_a_tokenizer_if_the_manifest_has_its_id(directory, capsys):
    repair(directory)
    ids = np.arange(400, dtype="<u4") % 200 + 1
    ids[::20] = 7
    ids.tofile(directory / "shard-00001.bin")
    assert main(["repair-manifest", str(directory), "--verify", "--dry-run"]) == 0
    edit_json(directory, unk_token_id=7)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    assert "(id 7)" in capsys.readouterr().err
    edit_json(directory, unk_token_id="seven")
    assert main(["repair-manifest", str(directory)]) == 5
    assert "unk_token_id" in capsys.readouterr().err


@pytest.fixture
def encoded(tmp_path):
    """A directory as `encode` leaves it, five documents in two shards or more."""
    from apr.data.encode import encode_corpus
    from apr.data.encode_options import EncodeOptions

    corpus = tmp_path / "corpus.jsonl"
    texts = [f"def f{i}(x):\n    return [x * {i}, 'wörd', {i * 17}]\n" * 5 for i in range(5)]
    corpus.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    output = tmp_path / "encoded"
    encode_corpus(EncodeOptions((str(corpus),), TOKENIZER, output, shard_tokens=100))
    return output


@pytest.mark.parametrize("more", [[], ["--tokenizer", str(TOKENIZER)]], ids=["bare", "tokenizer"])
@pytest.mark.parametrize(
    "change",
    [
        {"eos_token_count": 12345},
        {"eos_token_count": 3},
        {"corpus_sha256": "0" * 64},
        {"total_documents": 99, "shards": None},
    ],
    ids=str,
)
def test_counts_and_hashes_in_a_manifest_are_compared_with_the_ids(encoded, change, more, capsys):
    command = ["repair-manifest", str(encoded), "--verify", *more]
    assert main(command) == 0
    true = read_json(encoded)
    edit_json(encoded, **change)
    before = file_bytes(encoded)
    capsys.readouterr()
    assert main(command) == 5
    printed = capsys.readouterr()
    assert f"manifest.json: {next(iter(change))} " in printed.err
    assert "matches" not in printed.out
    assert file_bytes(encoded) == before
    assert main([*command, "--force"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    made = read_json(encoded)
    for key in change:
        assert made.get(key) in (true[key], None)
    assert (made["eos_token_count"], made["corpus_sha256"]) == (4, true["corpus_sha256"])


@pytest.mark.parametrize(
    "change",
    [
        {"total_documents": 99},
        {"total_documents": "x"},
        {"eos_token_count": -3},
        {"skipped_documents": True},
        {"corpus_sha256": 5},
    ],
    ids=str,
)
def test_impossible_counts_are_refused_without_reading_ids(encoded, change, capsys):
    edit_json(encoded, **change)
    assert main(["repair-manifest", str(encoded)]) == 5
    assert next(iter(change)) in capsys.readouterr().err
    assert main(["repair-manifest", str(encoded), "--force"]) == 0
    assert not change.keys() & read_json(encoded).keys()


@pytest.mark.usefixtures("encoded")
def test_an_end_of_text_that_also_occurs_within_texts_is_allowed(tmp_path):
    from apr.data.encode import encode_corpus
    from apr.data.encode_options import EncodeOptions

    output = tmp_path / "ordinary"
    encode_corpus(EncodeOptions((str(tmp_path / "corpus.jsonl"),), TOKENIZER, output, eos_token="x"))
    eos_id = read_json(output)["eos_token_id"]
    found = np.concatenate([np.fromfile(path, "<u4") for path in sorted(output.glob("*.bin"))])
    assert (found == eos_id).sum() > read_json(output)["eos_token_count"] == 4
    assert main(["repair-manifest", str(output), "--verify"]) == 0
    assert main(["repair-manifest", str(output), "--verify", "--tokenizer", str(TOKENIZER)]) == 0


def test_bad_shards_are_not_blamed_on_a_correct_manifest(encoded, capsys):
    repair(encoded, verify=True)
    for path in encoded.glob("*.bin"):
        np.full(path.stat().st_size // 4, 7, "<u4").tofile(path)
    assert main(["repair-manifest", str(encoded), "--verify"]) == 5
    printed = capsys.readouterr().out
    assert "NOT suitable" in printed
    assert "matches the files, unchanged" not in printed

"""Writers of one name at once, and what is said of ids that are none."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from apr.cli import main
from apr.data import ShardDir, repair
from apr.data.output_dir import lock_output
from apr.files import write_atomically

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"


@pytest.fixture
def directory(tmp_path):
    """Three shards of text-like ids below 512, without a manifest."""
    path = tmp_path / "shards"
    path.mkdir()
    ids = np.random.default_rng(0).zipf(1.3, 850) % 511 + 1
    for i, part in enumerate(np.split(ids, (300, 700))):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    return path


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def manifest(directory):
    return json.loads((directory / "manifest.json").read_bytes())


def edit(directory, **changes):
    (directory / "manifest.json").write_text(json.dumps(manifest(directory) | changes))


def test_shards_of_the_other_byte_order_get_a_verdict(directory, capsys):
    for path in directory.glob("*.bin"):
        ids = np.fromfile(path, "<u4")
        (ids | 256).byteswap().tofile(path)
    before = files(directory)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    said = capsys.readouterr()
    assert "NOT fit to train on" in said.out
    assert "no id is one that a vocabulary has" in said.err
    assert "shard-00000.bin: id " in said.err
    assert files(directory) == before


def test_a_scan_without_its_most_frequent_ids_is_made_anew(directory):
    repair(directory, verify=True)
    edit(directory, scan=manifest(directory)["scan"] | {"most_frequent": []})
    assert ShardDir(directory).scan().most_frequent
    assert manifest(directory)["scan"]["most_frequent"]


def test_runs_that_start_at_once_all_read_shards_that_nobody_scanned(directory):
    repair(directory)
    opened = [ShardDir(directory) for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(ShardDir.scan, opened))
    assert len({scan.corpus_sha256 for scan in scans}) == 1
    assert manifest(directory)["scan"]["shards"]


def test_writers_of_one_name_wait_for_each_other_and_a_leftover_is_taken_over(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.tmp").write_bytes(b"left by a process that was killed" * 100)
    contents = [bytes([65 + n % 26]) * (1000 + n) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_scan_that_cannot_be_kept_is_made_all_the_same(directory, monkeypatch):
    repair(directory)
    before = files(directory)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("apr.files.os.fsync", full)
    assert ShardDir(directory).scan().corpus_sha256
    assert files(directory) == before


def test_where_an_encoding_is_writing_nothing_is_repaired(directory, capsys):
    before = files(directory)
    with lock_output(directory):
        assert main(["repair-manifest", str(directory)]) == 5
        assert "is writing here: wait for it" in capsys.readouterr().err
        assert main(["repair-manifest", str(directory), "--dry-run"]) == 0
    assert files(directory) == before
    assert main(["repair-manifest", str(directory / "none")]) == 3
    assert not (directory / "none").exists()


def recorded(directory):
    """A manifest as an encoder writes it, with a hash and a count of documents for each shard."""
    repair(directory, verify=True)
    hashes = {row["name"]: row["sha256"] for row in manifest(directory)["scan"]["shards"]}
    rows = [
        {"name": path.name, "tokens": path.stat().st_size // 4, "documents": 4, "sha256": hashes[path.name]}
        for path in sorted(directory.glob("*.bin"))
    ]
    edit(directory, vocab_size=512, content_field="text", shards=rows, total_documents=12)
    return rows


def test_force_replaces_what_is_wrong_and_keeps_the_rest(directory, capsys):
    rows = recorded(directory)
    np.arange(1, 201, dtype="<u4").tofile(directory / "shard-00002.bin")
    first = (directory / "shard-00000.bin").read_bytes()
    damaged = bytes([first[0] ^ 1]) + first[1:]
    (directory / "shard-00000.bin").write_bytes(damaged)
    assert main(["repair-manifest", str(directory)]) == 5
    assert main(["repair-manifest", str(directory), "--verify", "--force"]) == 5
    said = capsys.readouterr().err
    assert "shard-00000.bin: changed since its hash was recorded" in said
    assert "shard-00002.bin: changed" not in said
    (directory / "shard-00000.bin").write_bytes(first)
    assert main(["repair-manifest", str(directory), "--force"]) == 0
    made = manifest(directory)
    assert made["shards"] == [*rows[:2], {"name": "shard-00002.bin", "tokens": 200}]
    assert (made["vocab_size"], made["content_field"], made["total_tokens"]) == (512, "text", 900)
    assert not {"total_documents", "corpus_sha256", "scan"} & made.keys()
    assert not ShardDir(directory).changed_shards()


def test_an_encoding_killed_before_the_manifest_knew_its_last_shard_is_finished(directory):
    rows = recorded(directory)
    edit(directory, complete=False, shard_count=2, total_tokens=700, shards=rows[:2], total_documents=8)
    assert repair(directory).outcome == "written"
    made = manifest(directory)
    assert (made["complete"], made["truncated"], made["total_tokens"]) == (True, True, 850)
    assert made["shards"] == [*rows[:2], {"name": "shard-00002.bin", "tokens": 150}]
    assert "total_documents" not in made
    assert ShardDir(directory).total_tokens == 850


def test_the_tokenizer_fills_what_is_null_and_what_it_contradicts_is_a_difference(directory, capsys):
    repair(directory)
    asked = ["repair-manifest", str(directory), "--tokenizer", str(TOKENIZER)]
    assert main(asked) == 0
    assert manifest(directory)["vocab_size"] == 512
    assert manifest(directory)["tokenizer_dir"] == str(TOKENIZER)
    before = files(directory)
    assert main(asked) == 0
    assert files(directory) == before
    for change in ({"vocab_size": 600}, {"tokenizer_sha256": "0" * 64}):
        edit(directory, **(json.loads(before["manifest.json"]) | change))
        capsys.readouterr()
        assert main(asked) == 5
        ((key, value),) = change.items()
        assert f"{key} is {value!r}, the tokenizer's is" in capsys.readouterr().err


def test_unknown_text_is_judged_without_its_tokenizer_where_the_manifest_says_its_id(directory, capsys):
    repair(directory)
    ids = np.arange(400, dtype="<u4") % 200 + 1
    ids[::20] = 7
    ids.tofile(directory / "shard-00001.bin")
    assert main(["repair-manifest", str(directory), "--verify", "--dry-run"]) == 0
    edit(directory, unk_token_id=7)
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    assert "unknown text (id 7)" in capsys.readouterr().err
    edit(directory, unk_token_id="seven")
    assert main(["repair-manifest", str(directory)]) == 5
    assert "unk_token_id is 'seven'" in capsys.readouterr().err


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
    ("lie", "says"),
    [
        ({"eos_token_count": 12345}, "eos_token_count is 12345, the shards hold id 0 4 times"),
        ({"eos_token_count": 3}, "eos_token_count is 3, the shards hold id 0 4 times"),
        ({"corpus_sha256": "0" * 64}, "corpus_sha256 is '000"),
        ({"total_documents": 99, "shards": None}, "total_documents is 99, that would be 98 ends of text"),
    ],
    ids=str,
)
def test_what_a_manifest_says_of_the_ids_is_compared_with_them(encoded, lie, says, more, capsys):
    command = ["repair-manifest", str(encoded), "--verify", *more]
    assert main(command) == 0
    true = manifest(encoded)
    edit(encoded, **lie)
    before = files(encoded)
    capsys.readouterr()
    assert main(command) == 5
    said = capsys.readouterr()
    assert says in said.err
    assert "agrees" not in said.out
    assert files(encoded) == before
    assert main([*command, "--force"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    made = manifest(encoded)
    for key in lie:
        assert made.get(key) in (true[key], None)
    assert (made["eos_token_count"], made["corpus_sha256"]) == (4, true["corpus_sha256"])


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"total_documents": 99}, "total_documents is 99, its shards have 5"),
        ({"total_documents": "x"}, "total_documents is 'x'"),
        ({"eos_token_count": -3}, "eos_token_count is -3"),
        ({"skipped_documents": True}, "skipped_documents is True"),
        ({"corpus_sha256": 5}, "corpus_sha256 is 5"),
    ],
    ids=str,
)
def test_counts_that_no_corpus_has_are_a_difference_without_reading(encoded, lie, says, capsys):
    edit(encoded, **lie)
    assert main(["repair-manifest", str(encoded)]) == 5
    assert says in capsys.readouterr().err
    assert main(["repair-manifest", str(encoded), "--force"]) == 0
    assert not lie.keys() & manifest(encoded).keys()


@pytest.mark.usefixtures("encoded")
def test_an_end_of_text_that_stands_in_texts_too_is_no_lie(tmp_path):
    from apr.data.encode import encode_corpus
    from apr.data.encode_options import EncodeOptions

    output = tmp_path / "ordinary"
    encode_corpus(EncodeOptions((str(tmp_path / "corpus.jsonl"),), TOKENIZER, output, eos_token="x"))
    eos_id = manifest(output)["eos_token_id"]
    found = np.concatenate([np.fromfile(path, "<u4") for path in sorted(output.glob("*.bin"))])
    assert (found == eos_id).sum() > manifest(output)["eos_token_count"] == 4
    assert main(["repair-manifest", str(output), "--verify"]) == 0
    assert main(["repair-manifest", str(output), "--verify", "--tokenizer", str(TOKENIZER)]) == 0


def test_an_honest_manifest_of_shards_that_are_none_is_not_said_to_be_at_fault(encoded, capsys):
    repair(encoded, verify=True)
    for path in encoded.glob("*.bin"):
        np.full(path.stat().st_size // 4, 7, "<u4").tofile(path)
    assert main(["repair-manifest", str(encoded), "--verify"]) == 5
    said = capsys.readouterr().out
    assert "NOT fit to train on" in said
    assert "agrees with the files, left alone" not in said

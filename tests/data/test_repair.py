"""The repair of a manifest: six promises, and every directory that is none."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.killing import KILLED

import apr
from apr.cli import main
from apr.data import ShardDir, repair
from apr.errors import RefusedError

PACKAGE = str(Path(apr.__file__).parents[1])

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_llama_tied"
SIZES = (300, 400, 150)


def write_shard(path, ids):
    np.asarray(ids, "<u4").tofile(path)


@pytest.fixture
def directory(tmp_path):
    """Three shards of text-like ids below 512, as an encoder that was killed leaves them."""
    path = tmp_path / "shards"
    path.mkdir()
    ids = np.random.default_rng(0).zipf(1.3, sum(SIZES)) % 511 + 1
    for i, part in enumerate(np.split(ids, np.cumsum(SIZES)[:-1])):
        write_shard(path / f"shard-{i:05d}.bin", part)
    return path


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


# The six promises of contracts/apr-tokenize-repair-manifest-v1.yaml


def test_promise_1_shard_count_equals_the_files_that_match(directory):
    (directory / "notes.txt").write_text("no shard")
    repair(directory)
    assert manifest(directory)["shard_count"] == 3


def test_promise_2_total_tokens_equals_the_bytes_over_four(directory):
    repair(directory)
    stored = sum(path.stat().st_size for path in directory.glob("shard-*.bin"))
    assert manifest(directory)["total_tokens"] == stored // 4 == sum(SIZES)


def test_promise_3_schema(directory):
    repair(directory)
    assert manifest(directory)["schema"] == "pretokenize-bin-v1"


def test_promise_4_it_says_that_and_when_it_was_repaired(directory):
    from datetime import UTC, datetime

    before = datetime.now(UTC).replace(microsecond=0)
    repair(directory)
    made = manifest(directory)
    assert made["repair"] is True
    assert made["source"] == "repair-manifest"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["repaired_at"])
    assert before <= datetime.fromisoformat(made["repaired_at"]) <= datetime.now(UTC)


def test_promise_5_the_reader_takes_it(directory):
    repair(directory)
    shards = ShardDir(directory)
    assert shards.total_tokens == sum(SIZES)
    expected = np.concatenate([np.fromfile(path, "<u4") for path in sorted(directory.glob("*.bin"))])
    assert np.array_equal(shards.read(0, sum(SIZES)), expected)


@pytest.mark.parametrize("flags", [[], ["--verify"], ["--verify", "--tokenizer", str(TOKENIZER)]])
def test_promise_6_twice_gives_the_same_bytes(directory, flags):
    def run():
        (directory / "manifest.json").unlink(missing_ok=True)
        assert main(["repair-manifest", str(directory), *flags]) == 0
        return re.sub(rb'"repaired_at": "[^"]*"', b"", (directory / "manifest.json").read_bytes())

    assert run() == run()
    before = files(directory)
    assert main(["repair-manifest", str(directory), *flags]) == 0
    assert files(directory) == before


def test_no_shard_is_changed_and_none_is_opened(directory, monkeypatch):
    before = files(directory)
    opened = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    monkeypatch.setattr("apr.data.rebuild.scan_shards", None)
    assert repair(directory).outcome == "written"
    assert any("manifest.json" in name for name in opened)
    assert not [name for name in opened if name.endswith(".bin")]
    assert {name: content for name, content in files(directory).items() if name != "manifest.json"} == before


def test_the_tokenizer_gives_the_vocabularys_size_and_without_it_is_null(directory):
    repair(directory)
    assert (manifest(directory)["vocab_size"], manifest(directory)["tokenizer_dir"]) == (None, None)
    repair(directory, TOKENIZER, force=True)
    assert (manifest(directory)["vocab_size"], manifest(directory)["tokenizer_dir"]) == (512, str(TOKENIZER))


def test_both_spellings_of_the_directory(directory, capsys):
    assert main(["repair-manifest", "--output", str(directory)]) == 0
    assert main(["repair-manifest", str(directory)]) == 0
    assert "left alone" in capsys.readouterr().out
    assert main(["repair-manifest"]) == 2
    assert main(["repair-manifest", str(directory), "--output", str(directory)]) == 2
    entry = [sys.executable, "-m", "apr.repair_manifest", str(directory), "--json"]
    done = subprocess.run(entry, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outcome"] == "left alone"


def test_a_dry_run_changes_nothing(directory):
    write_shard(directory / "shard-00003.bin", [])
    before = files(directory)
    report = repair(directory, dry_run=True, drop_empty=True, verify=True)
    assert report.outcome == "would be written"
    assert report.manifest["shard_count"] == 3
    assert files(directory) == before


# Manifests that are already there


def test_one_that_agrees_is_left_alone(directory):
    repair(directory)
    before = files(directory)
    assert repair(directory).outcome == "left alone"
    assert files(directory) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"total_tokens": 7}, "total_tokens is 7, the files say 850"),
        ({"shard_count": 9, "schema": "x"}, "schema"),
    ],
)
def test_one_that_disagrees_is_reported_and_replaced_only_by_force(directory, change, says, capsys):
    repair(directory)
    path = directory / "manifest.json"
    path.write_text(json.dumps(manifest(directory) | change))
    before = files(directory)
    assert main(["repair-manifest", str(directory)]) == 5
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert files(directory) == before
    assert main(["repair-manifest", str(directory), "--force"]) == 0
    assert (directory / "manifest.json.bak").read_bytes() == before["manifest.json"]
    assert ShardDir(directory).total_tokens == 850


def test_one_that_is_no_json_is_reported_and_replaced_only_by_force(directory):
    (directory / "manifest.json").write_text("{")
    with pytest.raises(RefusedError, match="no JSON object"):
        repair(directory)
    repair(directory, force=True)
    assert ShardDir(directory).total_tokens == 850


def test_an_encoding_that_was_cut_off_is_finished(directory):
    unfinished = {
        "schema": "pretokenize-bin-v1",
        "complete": False,
        "shard_count": 3,
        "total_tokens": 850,
        "total_documents": 12,
        "progress": {"items": 12},
    }
    (directory / "manifest.json").write_text(json.dumps(unfinished))
    with pytest.raises(RefusedError, match="did not finish"):
        ShardDir(directory)
    assert repair(directory).outcome == "written"
    made = manifest(directory)
    assert (made["complete"], made["truncated"], made["total_documents"]) == (True, True, 12)
    assert "progress" not in made
    assert ShardDir(directory).total_tokens == 850


# Directories that are none


def empty(directory, name="shard-00003.bin"):
    (directory / name).write_bytes(b"")


def torn(directory, name="shard-00002.bin", extra=b"\x01\x02\x03"):
    with (directory / name).open("ab") as file:
        file.write(extra)


def replaced(make):
    def break_it(directory):
        path = directory / "shard-00001.bin"
        path.unlink()
        make(path)

    return break_it


def bind(path):
    before = Path.cwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(before)


@pytest.mark.parametrize(
    ("break_it", "names"),
    [
        (empty, "shard-00003.bin"),
        (lambda d: empty(d, "shard-00001.bin"), "shard-00001.bin"),
        (torn, "shard-00002.bin"),
        (lambda d: torn(d, "shard-00000.bin"), "shard-00000.bin"),
        (lambda d: (d / "shard-00001.bin").unlink(), "number 1 is missing"),
        (lambda d: (d / "shard-00000.bin").unlink(), "number 0 is missing"),
        (lambda d: (d / "shard-00002.bin").rename(d / "shard-0002.bin"), "shard-0002.bin"),
        (lambda d: (d / "data.bin").write_bytes(bytes(4)), "data.bin"),
        (replaced(lambda path: path.symlink_to(path.with_name("shard-00000.bin"))), "shard-00001.bin"),
        (replaced(Path.mkdir), "shard-00001.bin"),
        (replaced(bind), "shard-00001.bin"),
        (replaced(os.mkfifo), "shard-00001.bin"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--verify"], ["--force"]])
def test_what_is_no_shard_directory_is_refused_with_the_file(break_it, names, flags, directory, capsys):
    break_it(directory)
    assert main(["repair-manifest", str(directory), *flags]) == 5
    error = capsys.readouterr().err
    assert names in error
    assert len(error.splitlines()) == 1
    assert not (directory / "manifest.json").exists()


def test_no_directory_and_no_shards(tmp_path, capsys):
    assert main(["repair-manifest", str(tmp_path / "gone")]) == 3
    (tmp_path / "file").write_text("")
    assert main(["repair-manifest", str(tmp_path / "file")]) == 3
    (tmp_path / "nothing").mkdir()
    assert main(["repair-manifest", str(tmp_path / "nothing")]) == 5
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_empty_shards_at_the_end_are_moved_aside_when_asked(directory, capsys):
    empty(directory)
    empty(directory, "shard-00004.bin")
    assert main(["repair-manifest", str(directory)]) == 5
    assert "--drop-empty" in capsys.readouterr().err
    report = repair(directory, drop_empty=True)
    assert len(report.done) == 2
    assert (directory / "shard-00003.bin.empty").exists()
    assert ShardDir(directory).total_tokens == 850


def test_an_empty_shard_between_others_is_never_dropped(directory):
    empty(directory, "shard-00001.bin")
    with pytest.raises(RefusedError, match=r"shard-00001\.bin: an empty shard between others"):
        repair(directory, drop_empty=True)


def test_nothing_but_empty_shards_is_refused(tmp_path):
    empty(tmp_path, "shard-00000.bin")
    with pytest.raises(RefusedError, match="no other holds a token"):
        repair(tmp_path, drop_empty=True)


def test_a_torn_last_shard_is_cut_when_asked_and_the_rest_is_kept(directory, capsys):
    whole = (directory / "shard-00002.bin").read_bytes()
    torn(directory)
    assert main(["repair-manifest", str(directory)]) == 5
    assert "whole tokens end at byte 600 of 603: --truncate-torn" in " ".join(capsys.readouterr().err.split())
    repair(directory, truncate_torn=True)
    assert (directory / "shard-00002.bin").read_bytes() == whole
    assert (directory / "shard-00002.bin.torn").read_bytes() == b"\x01\x02\x03"
    assert ShardDir(directory).total_tokens == 850


def test_a_torn_shard_before_the_last_is_never_cut(directory):
    torn(directory, "shard-00000.bin")
    with pytest.raises(RefusedError, match="only a last shard can be cut"):
        repair(directory, truncate_torn=True)


def test_a_shard_of_less_than_a_token_is_cut_and_moved_aside(directory):
    (directory / "shard-00003.bin").write_bytes(b"\x07\x08")
    repair(directory, truncate_torn=True, drop_empty=True)
    assert (directory / "shard-00003.bin.torn").read_bytes() == b"\x07\x08"
    assert ShardDir(directory).total_tokens == 850


@pytest.mark.parametrize("break_it", [empty, torn])
def test_a_verify_that_fails_neither_cuts_nor_moves(break_it, directory, capsys):
    for shard in directory.glob("*.bin"):
        write_shard(shard, np.zeros(100))
    break_it(directory)
    before = files(directory)
    flags = ["repair-manifest", str(directory), "--verify", "--drop-empty", "--truncate-torn"]
    assert main([*flags, "--json"]) == 5
    assert files(directory) == before
    assert json.loads(capsys.readouterr().out)["done"] == []


def test_a_verify_of_a_torn_shard_keeps_a_scan_that_holds(directory, monkeypatch):
    torn(directory)
    repair(directory, verify=True, truncate_torn=True)
    shards = ShardDir(directory)
    monkeypatch.setattr("apr.data.shards.scan_shards", None)
    assert shards.scan().total_tokens == 850


def test_a_manifest_with_another_producers_shards_is_verified_and_kept(directory):
    repair(directory)
    foreign = manifest(directory) | {"complete": None, "shards": ["shard-00000.bin"]}
    (directory / "manifest.json").write_text(json.dumps(foreign))
    assert repair(directory).outcome == "left alone"
    assert repair(directory, verify=True).outcome == "scan kept"
    kept = manifest(directory)
    assert {key: kept[key] for key in foreign} == foreign
    assert ShardDir(directory).total_tokens == 850


# What is in the shards


def test_verify_finds_what_a_plain_read_finds(directory):
    import hashlib

    report = repair(directory, TOKENIZER, verify=True)
    ids = [np.fromfile(path, "<u4") for path in sorted(directory.glob("*.bin"))]
    assert [shard.max_id for shard in report.scan.shards] == [int(part.max()) for part in ids]
    digests = [hashlib.sha256(part.tobytes()).hexdigest() for part in ids]
    assert [shard.sha256 for shard in report.scan.shards] == digests
    found, counts = np.unique(np.concatenate(ids), return_counts=True)
    by_count = sorted(zip(counts.tolist(), found.tolist(), strict=True), reverse=True)
    assert len(by_count) > 100
    assert report.scan.most_frequent == tuple((token, count) for count, token in by_count[:100])
    shares = counts / sum(SIZES)
    assert report.scan.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())
    made = manifest(directory)
    assert made["corpus_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert made["eos_token_count"] == int((np.concatenate(ids) == 0).sum())


def test_ids_beyond_the_vocabulary_are_located_and_nothing_is_written(directory, capsys):
    ids = np.fromfile(directory / "shard-00001.bin", "<u4")
    ids[[123, 200]] = 512, 600
    write_shard(directory / "shard-00001.bin", ids)
    flags = ["repair-manifest", str(directory), "--verify", "--tokenizer", str(TOKENIZER)]
    assert main(flags) == 5
    assert "shard-00001.bin: id 512 at byte 492 is beyond the vocabulary" in capsys.readouterr().err
    assert not (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.where(np.arange(10_000) % 5_000, 3, 4), "id 3 is 99.98% of all tokens"),
        (np.arange(10_000) % 3 + 5, "1.585 bits a token"),
        (np.where(np.arange(9_000) % 3, np.arange(9_000) % 500 + 1, 0), "ends of text (id 0): 33.33%"),
    ],
)
def test_what_is_no_text_is_reported_and_nothing_is_written(ids, says, tmp_path, capsys):
    write_shard(tmp_path / "shard-00000.bin", ids)
    flags = ["repair-manifest", str(tmp_path), "--verify", "--tokenizer", str(TOKENIZER), "--json"]
    assert main(flags) == 5
    captured = capsys.readouterr()
    assert any(says in problem for problem in json.loads(captured.out)["problems"])
    assert says in captured.err
    assert not (tmp_path / "manifest.json").exists()


def test_a_corpus_of_unknown_text_is_said_to_be_that(tmp_path):
    from apr.data.corpus_check import corpus_problems
    from apr.data.listing import list_shards
    from apr.data.scan import scan_shards

    write_shard(tmp_path / "shard-00000.bin", np.where(np.arange(10_000) % 5_000, 3, 4))
    found = scan_shards(list_shards(tmp_path))
    assert corpus_problems(found, None, 3)[0].startswith("id 3 (unknown text) is 99.98%")
    some = np.arange(10_000) % 400 + 10
    some[::50] = 3
    write_shard(tmp_path / "shard-00000.bin", some)
    assert corpus_problems(scan_shards(list_shards(tmp_path)), None, None) == []
    assert corpus_problems(scan_shards(list_shards(tmp_path)), None, 3) == [
        "unknown text (id 3): 2.00% of all tokens, over 1%"
    ]


def test_a_shard_that_changed_since_it_was_encoded_is_found(tmp_path):
    from apr.data.encode import encode_corpus
    from apr.data.encode_options import EncodeOptions

    (tmp_path / "a.py").write_text("".join(f"def f{i}(x):\n    return {i}\n" for i in range(99)))
    encode_corpus(EncodeOptions((str(tmp_path / "a.py"),), TOKENIZER, tmp_path / "out"))
    assert repair(tmp_path / "out", verify=True).ok
    shard = tmp_path / "out" / "shard-00000.bin"
    ids = np.fromfile(shard, "<u4")
    ids[7] ^= 1
    write_shard(shard, ids)
    report = repair(tmp_path / "out", verify=True)
    assert "changed since its hash was recorded" in report.problems[0]
    assert repair(tmp_path / "out").ok


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6, 7])
def test_killed_at_any_moment_nothing_is_lost(moment, directory):
    torn(directory)
    before = files(directory)
    old = {"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": 1}
    (directory / "manifest.json").write_text(json.dumps(old))
    flags = ["repair-manifest", str(directory), "--force", "--truncate-torn"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moment), *flags], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert manifest(directory) == old or manifest(directory)["total_tokens"] == 850
    shard = (directory / "shard-00002.bin").read_bytes()
    kept = b"".join(path.read_bytes() for path in directory.glob("shard-00002.bin.torn*"))
    assert shard == before["shard-00002.bin"] or shard + kept == before["shard-00002.bin"]
    assert main(flags) == 0
    assert ShardDir(directory).total_tokens == 850


def test_a_verify_without_hashes_finds_the_same_but_them(directory, capsys):
    with_hashes = repair(directory, verify=True, dry_run=True).scan
    without = repair(directory, verify=True, hashes=False).scan
    assert (without.counts == with_hashes.counts).all()
    assert [shard.max_id for shard in without.shards] == [shard.max_id for shard in with_hashes.shards]
    assert {shard.sha256 for shard in without.shards} == {None}
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest.get("corpus_sha256") is None
    # What a trainer needs is not in it: it reads the shards again.
    assert ShardDir(directory).scan().corpus_sha256 == with_hashes.corpus_sha256
    assert main(["repair-manifest", str(directory), "--no-hash"]) == 2
    assert "--no-hash belongs to --verify" in capsys.readouterr().err


def run_module(*arguments):
    command = [sys.executable, "-m", "apr.repair_manifest", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def without_time(content):
    return re.sub(rb'"repaired_at": "[^"]*"', b"", content)

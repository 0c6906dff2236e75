"""Rebuilding a manifest: six promises, manifests that exist, and what --verify checks."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tests.data.directories import TOKENIZER, edit_json, file_bytes, read_json, write_shard
from tests.data.test_listing import add_empty, tear
from tests.killing import KILLED

from apr.cli import main
from apr.data import ShardDir, repair
from apr.errors import RefusedError

SIZES = (300, 400, 150)


# The six promises of contracts/apr-tokenize-repair-manifest-v1.yaml


def test_promise_1_shard_count_is_the_number_of_shard_files(directory):
    (directory / "notes.txt").write_text("not a shard")
    repair(directory)
    assert read_json(directory)["shard_count"] == 3


def test_promise_2_total_tokens_is_the_number_of_bytes_over_four(directory):
    repair(directory)
    stored = sum(path.stat().st_size for path in directory.glob("shard-*.bin"))
    assert read_json(directory)["total_tokens"] == stored // 4 == sum(SIZES)


def test_promise_3_the_schema_is_named(directory):
    repair(directory)
    assert read_json(directory)["schema"] == "pretokenize-bin-v1"


def test_promise_4_the_repair_and_its_time_are_recorded(directory):
    from datetime import UTC, datetime

    before = datetime.now(UTC).replace(microsecond=0)
    repair(directory)
    made = read_json(directory)
    assert made["repair"] is True
    assert made["source"] == "repair-manifest"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["repaired_at"])
    assert before <= datetime.fromisoformat(made["repaired_at"]) <= datetime.now(UTC)


def test_promise_5_the_directory_can_be_read(directory):
    repair(directory)
    shards = ShardDir(directory)
    assert shards.total_tokens == sum(SIZES)
    expected = np.concatenate([np.fromfile(path, "<u4") for path in sorted(directory.glob("*.bin"))])
    assert np.array_equal(shards.read(0, sum(SIZES)), expected)


@pytest.mark.parametrize("flags", [[], ["--verify"], ["--verify", "--tokenizer", str(TOKENIZER)]])
def test_promise_6_a_second_repair_gives_the_same_bytes(directory, flags):
    def run():
        (directory / "manifest.json").unlink(missing_ok=True)
        assert main(["repair-manifest", str(directory), *flags]) == 0
        return re.sub(rb'"repaired_at": "[^"]*"', b"", (directory / "manifest.json").read_bytes())

    assert run() == run()
    before = file_bytes(directory)
    assert main(["repair-manifest", str(directory), *flags]) == 0
    assert file_bytes(directory) == before


def test_no_shard_is_opened_or_changed(directory):
    before = file_bytes(directory)
    opened = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    assert repair(directory).outcome == "written"
    assert any("manifest.json" in name for name in opened)
    assert not [name for name in opened if name.endswith(".bin")]
    assert {
        name: content for name, content in file_bytes(directory).items() if name != "manifest.json"
    } == before


def test_the_vocabulary_size_comes_from_the_tokenizer_and_is_null_without_one(directory):
    repair(directory)
    assert (read_json(directory)["vocab_size"], read_json(directory)["tokenizer_dir"]) == (None, None)
    repair(directory, TOKENIZER, force=True)
    assert (read_json(directory)["vocab_size"], read_json(directory)["tokenizer_dir"]) == (
        512,
        str(TOKENIZER),
    )


def test_the_directory_can_be_given_as_an_argument_or_as_a_flag(directory, capsys):
    assert main(["repair-manifest", "--output", str(directory)]) == 0
    assert main(["repair-manifest", str(directory)]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert main(["repair-manifest"]) == 2
    assert main(["repair-manifest", str(directory), "--output", str(directory)]) == 2
    entry = [sys.executable, "-m", "apr.repair_manifest", str(directory), "--json"]
    done = subprocess.run(entry, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outcome"] == "left alone"


def test_a_dry_run_changes_nothing(directory):
    add_empty(directory)
    before = file_bytes(directory)
    report = repair(directory, dry_run=True, drop_empty=True, verify=True)
    assert report.outcome == "would be written"
    assert report.manifest["shard_count"] == 3
    assert file_bytes(directory) == before


# Manifests that exist


def test_a_manifest_that_agrees_is_left_alone(directory):
    repair(directory)
    before = file_bytes(directory)
    assert repair(directory).outcome == "left alone"
    assert file_bytes(directory) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"total_tokens": 7}, "total_tokens"),
        ({"shard_count": 9, "schema": "x"}, "schema"),
    ],
)
def test_a_manifest_that_disagrees_is_replaced_only_with_force(directory, change, key, capsys):
    repair(directory)
    edit_json(directory, **change)
    before = file_bytes(directory)
    assert main(["repair-manifest", str(directory)]) == 5
    error = capsys.readouterr().err
    assert key in error
    assert len(error.splitlines()) == 1
    assert file_bytes(directory) == before
    assert main(["repair-manifest", str(directory), "--force"]) == 0
    assert (directory / "manifest.json.bak").read_bytes() == before["manifest.json"]
    assert ShardDir(directory).total_tokens == 850


def test_an_invalid_manifest_is_replaced_only_with_force(directory):
    (directory / "manifest.json").write_text("{")
    with pytest.raises(RefusedError, match="JSON"):
        repair(directory)
    repair(directory, force=True)
    assert ShardDir(directory).total_tokens == 850


def test_an_unfinished_encoding_is_finished(directory):
    unfinished = {
        "schema": "pretokenize-bin-v1",
        "complete": False,
        "shard_count": 3,
        "total_tokens": 850,
        "total_documents": 12,
        "progress": {"items": 12},
    }
    (directory / "manifest.json").write_text(json.dumps(unfinished))
    with pytest.raises(RefusedError, match="resume"):
        ShardDir(directory)
    assert repair(directory).outcome == "written"
    made = read_json(directory)
    assert (made["complete"], made["truncated"], made["total_documents"]) == (True, True, 12)
    assert "progress" not in made
    assert ShardDir(directory).total_tokens == 850


@pytest.mark.parametrize(
    ("recorded", "note"),
    [
        (
            None,
            "rebuilt from the shards; how many documents they hold, and whether they are all, is not known",
        ),
        ({"total_documents": 12}, "what it said agreed with the files and is kept"),
        (
            {"total_documents": 12, "progress": {}, "complete": False},
            "an encoding that was cut off, finished with the shards that are there",
        ),
    ],
)
def test_notes_are_the_bytes_that_earlier_versions_wrote(directory, recorded, note):
    if recorded is not None:
        counts = {"schema": "pretokenize-bin-v1", "complete": True, "shard_count": 3, "total_tokens": 850}
        (directory / "manifest.json").write_text(json.dumps(counts | recorded))
    repair(directory, verify=True, force=True)
    assert read_json(directory)["note"] == note


def test_the_keys_of_another_producer_are_kept(directory):
    repair(directory)
    foreign = read_json(directory) | {"complete": None, "shards": ["shard-00000.bin"]}
    (directory / "manifest.json").write_text(json.dumps(foreign))
    assert repair(directory).outcome == "left alone"
    assert repair(directory, verify=True).outcome == "scan kept"
    kept = read_json(directory)
    assert {key: kept[key] for key in foreign} == foreign
    assert ShardDir(directory).total_tokens == 850


# --verify


def test_verify_records_what_numpy_and_hashlib_compute(directory):
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
    made = read_json(directory)
    assert made["corpus_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert made["eos_token_count"] == int((np.concatenate(ids) == 0).sum())


def test_an_id_that_is_not_in_the_vocabulary_is_located_and_nothing_is_written(directory, capsys):
    ids = np.fromfile(directory / "shard-00001.bin", "<u4")
    ids[[123, 200]] = 512, 600
    write_shard(directory / "shard-00001.bin", ids)
    flags = ["repair-manifest", str(directory), "--verify", "--tokenizer", str(TOKENIZER)]
    assert main(flags) == 5
    assert "shard-00001.bin: id 512 at byte 492 " in capsys.readouterr().err
    assert not (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.where(np.arange(10_000) % 5_000, 3, 4), "99.98%"),
        (np.arange(10_000) % 3 + 5, "1.585 bits"),
        (np.where(np.arange(9_000) % 3, np.arange(9_000) % 500 + 1, 0), "33.33%"),
    ],
)
def test_ids_that_are_not_text_are_reported_and_nothing_is_written(ids, says, tmp_path, capsys):
    write_shard(tmp_path / "shard-00000.bin", ids)
    flags = ["repair-manifest", str(tmp_path), "--verify", "--tokenizer", str(TOKENIZER), "--json"]
    assert main(flags) == 5
    captured = capsys.readouterr()
    assert any(says in problem for problem in json.loads(captured.out)["problems"])
    assert says in captured.err
    assert not (tmp_path / "manifest.json").exists()


def test_a_shard_that_changed_since_it_was_encoded_is_named(tmp_path):
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
    assert report.problems[0].startswith("shard-00000.bin: changed")
    assert repair(tmp_path / "out").ok


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6, 7])
def test_a_kill_at_any_flush_loses_nothing(moment, directory):
    tear(directory)
    before = file_bytes(directory)
    old = {"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": 1}
    (directory / "manifest.json").write_text(json.dumps(old))
    flags = ["repair-manifest", str(directory), "--force", "--truncate-torn"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moment), *flags], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_json(directory) == old or read_json(directory)["total_tokens"] == 850
    shard = (directory / "shard-00002.bin").read_bytes()
    kept = b"".join(path.read_bytes() for path in directory.glob("shard-00002.bin.torn*"))
    assert shard == before["shard-00002.bin"] or shard + kept == before["shard-00002.bin"]
    assert main(flags) == 0
    assert ShardDir(directory).total_tokens == 850


def test_verify_without_hashes_leaves_them_to_the_run(directory, capsys):
    repair(directory, verify=True, hashes=False)
    assert read_json(directory).get("corpus_sha256") is None
    assert read_json(directory)["scan"]["shards"][0]["sha256"] is None
    # A run needs hashes: it reads the shards again.
    assert ShardDir(directory).scan().corpus_sha256 is not None
    assert main(["repair-manifest", str(directory), "--no-hash"]) == 2
    assert "--no-hash" in capsys.readouterr().err


def test_the_module_alone_does_the_same_as_the_command(directory, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    assert main(["repair-manifest", str(directory)]) == 0
    expected = capsys.readouterr().out.replace(str(directory), str(other))
    done = run_module(other)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    manifests = [path / "manifest.json" for path in (directory, other)]
    assert len({re.sub(r'"repaired_at": "[^"]*"', "", path.read_text()) for path in manifests}) == 1
    add_empty(other)
    done = run_module(other)
    assert (done.returncode, done.stdout) == (5, "")
    assert "shard-00003.bin" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_plain_repair_imports_nothing_slow(directory):
    code = (
        "import sys; from apr.data.rebuild import repair; print(repair(sys.argv[1])); "
        "assert not {'numpy', 'tyro', 'rich.console', 'tokenizers', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)


def run_module(directory):
    command = [sys.executable, "-m", "apr.repair_manifest", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False)

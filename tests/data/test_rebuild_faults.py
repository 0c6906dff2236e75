"""Repairs on a failing machine: killed, no space, no permission, shards that change meanwhile."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import LONG
from tests.data.directories import file_bytes, read_json
from tests.killing import KILLED_AT_EVENT

from apr.cli import main
from apr.data import ShardDir
from apr.data.scan import scan_shards
from apr.errors import RefusedError

OLD = {"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": 1}


@pytest.fixture
def directory(tmp_path):
    """Three sound shards with a manifest of another directory."""
    path = tmp_path / "shards"
    path.mkdir()
    for number, count in enumerate((300, 400, 150)):
        ids = np.random.default_rng(number).integers(0, 500, count)
        ids.astype("<u4").tofile(path / f"shard-{number:05d}.bin")
    (path / "manifest.json").write_text(json.dumps(OLD))
    return path


# A repair has about thirty such events: listing, reading the manifest, cutting, renaming.
@pytest.mark.parametrize("moment", range(1, 40) if LONG else [2, 5, 8, 11, 14])
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_manifest(moment, directory):
    with (directory / "shard-00002.bin").open("ab") as shard:
        shard.write(b"\x01\x02\x03")
    before = file_bytes(directory)
    flags = ["repair-manifest", str(directory), "--force", "--truncate-torn", "--verify"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVENT, str(moment), *flags], check=False, capture_output=True
    )
    assert killed.returncode in {0, -signal.SIGKILL}, killed.stderr
    assert LONG or killed.returncode == -signal.SIGKILL
    assert read_json(directory) == OLD or read_json(directory)["total_tokens"] == 850
    shard = (directory / "shard-00002.bin").read_bytes()
    kept = b"".join(path.read_bytes() for path in directory.glob("shard-00002.bin.torn*"))
    assert shard == before["shard-00002.bin"] or shard + kept == before["shard-00002.bin"]
    for name in ("shard-00000.bin", "shard-00001.bin"):
        assert (directory / name).read_bytes() == before[name]
    assert main(flags) == 0
    assert ShardDir(directory).total_tokens == 850


def as_child(act, *arguments):
    """Exit code and standard error of a function in a fork, which need not import anything again."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(writing, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            code = act(*arguments)
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message


def test_a_full_disk_changes_nothing(directory):
    (directory / "manifest.json").unlink()
    before = file_bytes(directory)

    def without_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # bytes: less than a manifest has
        return main(["repair-manifest", str(directory)])

    code, message = as_child(without_room)
    assert code == 7
    assert len(message.splitlines()) == 1
    assert "manifest.json" in message
    assert file_bytes(directory) == before


def test_an_unreadable_shard_is_named(directory):
    for number in range(3, 1000):
        np.arange(4, dtype="<u4").tofile(directory / f"shard-{number:05d}.bin")
    (directory / "shard-00567.bin").chmod(0)
    directory.chmod(0o755)

    def unprivileged():
        os.chdir(directory)
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)
        return main(["repair-manifest", ".", "--verify", "--force", "--dry-run"])

    code, message = as_child(unprivileged)
    assert code == 7
    assert message.splitlines() == ["apr repair-manifest: error: shard-00567.bin: Permission denied"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda path: path.unlink(), 3),
        (lambda path: path.write_bytes(bytes(8)), 4),
        (lambda path: path.write_bytes(bytes(4000)), 4),
    ],
    ids=["gone", "shrunk", "grown"],
)
def test_a_shard_that_changes_between_listing_and_reading_is_named(
    change, code, directory, monkeypatch, capsys
):
    def changing(shards, **options):
        change(directory / "shard-00001.bin")
        return scan_shards(shards, **options)

    monkeypatch.setattr("apr.data.scan.scan_shards", changing)
    assert main(["repair-manifest", str(directory), "--verify", "--force"]) == code
    message = capsys.readouterr().err
    assert "shard-00001.bin" in message
    assert len(message.splitlines()) == 1
    assert read_json(directory) == OLD


INTERRUPTED = """
import signal, sys, os
import apr.data.scan
from apr.cli import main
scan_shards = apr.data.scan.scan_shards
def reading(shards, **options):
    def on_progress(read, total):
        os.kill(os.getpid(), signal.SIGINT)
    return scan_shards(shards, **options | {"on_progress": on_progress})
apr.data.scan.scan_shards = reading
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_a_verify_in_the_middle_of_a_shard(directory):
    large = directory / "shard-00003.bin"
    with large.open("wb") as shard:
        shard.truncate(40 << 30)  # sparse: reading all of it takes far longer than it may
    command = [sys.executable, "-c", INTERRUPTED, "repair-manifest", str(directory), "--verify", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "apr repair-manifest: interrupted\n")
    assert read_json(directory) == OLD


def test_edits_of_a_manifest_by_hand_are_noticed(directory, capsys):
    assert main(["repair-manifest", str(directory), "--force", "--verify"]) == 0
    made = read_json(directory)
    path = directory / "manifest.json"
    path.write_text(json.dumps(made | {"total_tokens": 851}))
    assert main(["repair-manifest", str(directory)]) == 5
    assert "total_tokens" in capsys.readouterr().err
    path.write_text(json.dumps(made | {"vocab_size": 400}))
    assert main(["repair-manifest", str(directory), "--verify"]) == 5
    assert "vocabulary" in capsys.readouterr().err
    # A scan that was edited is not evidence of anything: it is replaced.
    made["scan"]["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(made))
    assert main(["repair-manifest", str(directory), "--verify"]) == 0
    assert read_json(directory)["scan"]["shards"][1]["sha256"] != "0" * 64


@pytest.mark.long
def test_a_million_shards_are_listed_repaired_and_read(tmp_path):
    count = 1_000_000
    for number in range(count):
        shard = os.open(tmp_path / f"shard-{number:06d}.bin", os.O_CREAT | os.O_WRONLY)
        os.write(shard, (number % 500).to_bytes(4, "little"))
        os.close(shard)
    assert main(["repair-manifest", str(tmp_path), "--verify", "--no-hash"]) == 0
    shards = ShardDir(tmp_path)
    assert shards.total_tokens == count
    for start in (0, 123_456, count - 1000):  # more shards than may be open at a time
        assert np.array_equal(shards.read(start, 1000), np.arange(start, start + 1000) % 500)
    (tmp_path / "shard-500000.bin").unlink()
    with pytest.raises(RefusedError, match="number 500000 is missing"):
        ShardDir(tmp_path)

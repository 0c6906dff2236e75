"""The loader: one order whoever cuts it, a state of a few numbers, and a thread that keeps nobody waiting."""

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import apr
from apr.data import Loader, LoaderState, ShardDir, Windows
from apr.errors import RefusedError

T = 8


@pytest.fixture
def directory(tmp_path):
    """Three shards, 1003 ids in all, each its own place."""
    path = tmp_path / "shards"
    path.mkdir()
    for i, part in enumerate(np.split(np.arange(1003), [300, 700])):
        part.astype("<u4").tofile(path / f"shard-{i:05d}.bin")
    facts = {"schema": "pretokenize-bin-v1", "shard_count": 3, "total_tokens": 1003}
    (path / "manifest.json").write_text(json.dumps(facts))
    return path


def windows(directory):
    return Windows(ShardDir(directory), T)


def take(loader, batches):
    with loader:
        return torch.cat([next(loader) for _ in range(batches)])


def test_batches_are_the_windows_of_the_order_through_epochs_of_the_data(directory):
    from apr.data.windows import TrainingOrder

    source = windows(directory)
    found = take(Loader(source, 10, seed=3), 30)  # 125 windows: two and a half epochs
    assert found.dtype == torch.int64
    assert found.shape == (300, T + 1)
    starts = TrainingOrder(len(source), 3, shuffle=True).windows(0, 300) * T
    assert np.array_equal(found.numpy(), starts[:, None] + np.arange(T + 1))
    in_order = take(Loader(source, 10, shuffle=False), 1)
    assert in_order[:, 0].tolist() == list(range(0, 10 * T, T))


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 1), (6, 2), (3, 4), (1, 12)])
def test_ranks_and_batches_cut_the_same_order(directory, batch_size, world_size):
    source = windows(directory)
    whole = take(Loader(source, 12, seed=1), 14)
    steps = 14 * 12 // (batch_size * world_size)
    ranks = [
        take(Loader(source, batch_size, seed=1, rank=rank, world_size=world_size), steps)
        for rank in range(world_size)
    ]
    cut = torch.stack([part.reshape(steps, batch_size, T + 1) for part in ranks], 1)
    assert torch.equal(cut.reshape(-1, T + 1), whole)


@pytest.mark.parametrize("taken", [0, 1, 12, 13, 40])
def test_a_state_that_went_through_json_goes_on_where_it_was(directory, taken):
    whole = take(Loader(windows(directory), 10, seed=7), 60)
    loader = Loader(windows(directory), 10, seed=7)
    if taken:
        take(loader, taken)
    kept = LoaderState.from_dict(json.loads(json.dumps(loader.state.to_dict())))
    assert kept == loader.state
    assert (kept.epoch, kept.position) == divmod(10 * taken, 125)
    rest = take(Loader(windows(directory), 10, state=kept), 60 - taken)  # the seed comes from the state
    assert torch.equal(rest, whole[10 * taken :])


def test_going_on_costs_the_same_however_far_it_was(directory, monkeypatch):
    def work(epoch, position):
        """Ids read, windows asked for, shards scanned, to get the first batch from there."""
        done = []
        source = windows(directory)
        state = LoaderState(Loader(source, 10, seed=1).fingerprint, epoch, position, 1)
        order, gather, scan = (
            apr.data.loader.TrainingOrder.windows,
            ShardDir.gather,
            apr.data.shards.scan_shards,
        )

        def counted(call, size):
            return lambda *given, **named: (done.append(size(*given)), call(*given, **named))[1]

        with monkeypatch.context() as patch:
            patch.setattr("apr.data.loader._AHEAD", 1)
            patch.setattr("apr.data.windows.TrainingOrder.windows", counted(order, lambda _, __, n: n))
            patch.setattr(ShardDir, "gather", counted(gather, lambda *given: given[2].size))
            patch.setattr("apr.data.shards.scan_shards", counted(scan, lambda *_: "scan"))
            take(Loader(source, 10, state=state), 1)
        return done[:2]

    assert work(0, 0) == work(0, 120) == work(10**9, 3) == [10, 10 * (T + 1)]


def test_a_directory_that_changed_is_refused_and_what_changed_is_named(directory):
    state = Loader(windows(directory), 10).state
    ids = np.fromfile(directory / "shard-00001.bin", "<u4")
    ids[5] += 1
    ids.tofile(directory / "shard-00001.bin")
    with pytest.raises(RefusedError, match=r"not the data .*corpus_sha256 was \w+, is \w+"):
        Loader(windows(directory), 10, state=state)
    with pytest.raises(RefusedError, match="seq_length was 8, is 9"):
        Loader(Windows(ShardDir(directory), 9), 10, state=state)
    with pytest.raises(RefusedError, match="shuffle was True, is False"):
        Loader(windows(directory), 10, state=state, shuffle=False)


def test_the_shard_that_changed_is_named_where_its_encoder_wrote_its_hash(directory):
    rows = [
        {"name": s.name, "tokens": t, "sha256": s.sha256}
        for s, t in zip(ShardDir(directory).scan().shards, [300, 400, 303], strict=True)
    ]
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"shards": rows}))
    state = Loader(windows(directory), 10).state
    np.zeros(400, "<u4").tofile(directory / "shard-00001.bin")
    with pytest.raises(RefusedError, match=r"not the data that the state is of \(shard-00001\.bin\)"):
        Loader(windows(directory), 10, state=state)


def test_a_copy_of_a_directory_has_the_same_fingerprint(directory, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(directory, copy, copy_function=shutil.copyfile)  # other times
    state = Loader(windows(directory), 10).state
    assert Loader(windows(copy), 10, state=state).state == state


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"position": -1}, "LoaderState.position is -1"),
        ({"seed": "1"}, "LoaderState.seed is '1'"),
        ({"epoch": True}, "LoaderState.epoch is True"),
        ({"fingerprint": None}, "LoaderState.fingerprint is None"),
        ({"fingerprint": {"shard_count": 3}}, "Fingerprint.total_tokens is None"),
    ],
)
def test_what_is_no_state_is_refused(directory, change, names):
    kept = Loader(windows(directory), 10).state.to_dict()
    with pytest.raises(RefusedError, match=names):
        LoaderState.from_dict(kept | change)


def test_a_shard_that_shrinks_or_goes_is_named_where_the_batch_is_taken(directory):
    loader, later = (Loader(windows(directory), 10, seed=1) for _ in range(2))
    with loader:
        next(loader)
        (directory / "shard-00001.bin").write_bytes(bytes(8))
        with pytest.raises(apr.TruncatedError, match=r"shard-00001\.bin: the file ends at byte 8"):
            take(loader, 30)
    (directory / "shard-00001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.bin"):
        take(later, 30)


@pytest.fixture
def always_looking(monkeypatch):
    monkeypatch.setattr("apr.data.monitor.POLL_SECONDS", 0.0)


def written_over(path):
    with path.open("r+b") as file:  # never shorter meanwhile
        file.write(b"\7\0\0\0" * (path.stat().st_size // 4))


def grown(path):
    with path.open("ab") as file:
        file.write(bytes(4))


def put_in_its_place(path):
    other = path.with_suffix(".new")
    np.full(path.stat().st_size // 4, 7, "<u4").tofile(other)
    other.rename(path)


@pytest.mark.usefixtures("always_looking")
@pytest.mark.parametrize(
    ("happens", "error", "says"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "shard-00001"),
        (written_over, RefusedError, "shard-00001.bin: changed while a run reads it"),
        (put_in_its_place, RefusedError, "shard-00001.bin: changed while a run reads it"),
        (lambda path: path.write_bytes(bytes(8)), apr.TruncatedError, "shard-00001"),
        (grown, RefusedError, "shard-00001.bin: changed while a run reads it"),
    ],
    ids=["goes", "written over", "replaced", "shrinks", "grows"],
)
def test_a_shard_that_is_open_and_goes_or_changes_is_named(directory, happens, error, says):
    expected = take(Loader(windows(directory), 10, seed=1), 30)
    with Loader(windows(directory), 10, seed=1) as loader:
        found = [next(loader) for _ in range(12)]  # every shard is open
        happens(directory / "shard-00001.bin")
        with pytest.raises(error, match=re.escape(says)):
            found += [next(loader) for _ in range(18)]
        assert torch.equal(torch.cat(found), expected[: 10 * len(found)])
        with pytest.raises(error, match=re.escape(says)):  # nor does the next call pass it over
            [next(loader) for _ in range(18)]


@pytest.mark.usefixtures("always_looking")
def test_a_shard_that_is_copied_or_touched_goes_on(directory):
    expected = take(Loader(windows(directory), 10, seed=1), 30)
    with Loader(windows(directory), 10, seed=1) as loader:
        found = [next(loader)]
        path = directory / "shard-00001.bin"
        other = path.with_suffix(".new")
        other.write_bytes(path.read_bytes())
        other.rename(path)
        os.utime(path, ns=(1, 1))
        found += [next(loader) for _ in range(29)]
    assert torch.equal(torch.cat(found), expected)


FORKED = """
import os, signal, sys
from apr.data import Loader, ShardDir, Windows
loader = Loader(Windows(ShardDir(sys.argv[1]), 8), 4, seed=1)
next(loader)
child = os.fork()
signal.alarm(60)  # a child that waits for a thread it does not have ends the test
found = [next(loader).tolist() for _ in range(5)]
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(found, flush=True)
"""


def test_a_loader_that_was_used_goes_on_in_a_fork_where_it_was(directory):
    command = [sys.executable, "-c", FORKED, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    parent, child = done.stdout.splitlines()
    assert parent == child
    expected = take(Loader(windows(directory), 4, seed=1), 6)[4:]
    assert json.loads(parent) == expected.reshape(5, 4, T + 1).tolist()


def test_pickling_depends_on_no_history(directory):
    shards = ShardDir(directory)
    fresh = pickle.dumps(shards)
    expected = shards.read(0, 1003)
    assert pickle.dumps(shards) == fresh
    assert np.array_equal(pickle.loads(fresh).read(0, 1003), expected)
    with Loader(windows(directory), 10, seed=1) as loader:
        next(loader)
        copy = pickle.loads(pickle.dumps(loader))
        assert copy.state == loader.state
        assert torch.equal(take(copy, 3), take(loader, 3))


@pytest.mark.parametrize(
    "change",
    [{"position": 125}, {"position": 10**9}, {"epoch": 2**63}, {"epoch": 2**70}, {"seed": 2**64}],
    ids=str,
)
def test_a_place_that_no_loader_has_is_refused_at_once(directory, change):
    kept = LoaderState.from_dict(Loader(windows(directory), 10).state.to_dict() | change)
    ((name, value),) = change.items()
    with pytest.raises(RefusedError, match=f"{name} {value}"):
        Loader(windows(directory), 10, state=kept)


def test_seeds_and_states_that_are_none_are_refused(directory):
    for seed in (-1, 2**64):
        with pytest.raises(RefusedError, match=f"seed {seed}"):
            Loader(windows(directory), 10, seed=seed)
    take(Loader(windows(directory), 10, seed=2**64 - 1), 1)
    for kept in (None, [], "x", 3):
        with pytest.raises(RefusedError, match="no object of fields"):
            LoaderState.from_dict(kept)


def test_ids_from_two_to_the_31_on_are_what_they_are(directory):
    ids = np.fromfile(directory / "shard-00000.bin", "<u4")
    ids[:300] = 2**32 - 1 - np.arange(300)
    ids.tofile(directory / "shard-00000.bin")
    found = take(Loader(windows(directory), 10, shuffle=False), 1)
    assert found[0].tolist() == [2**32 - 1 - n for n in range(T + 1)]


def test_an_error_is_raised_after_the_batches_before_it_and_the_next_call_tries_again(directory, monkeypatch):
    reads = []
    gather = ShardDir.gather

    def failing(shards, starts, out):
        reads.append(1)
        if len(reads) == 3:
            raise OSError(5, "Input/output error", "shard-00002.bin")
        gather(shards, starts, out)

    whole = take(Loader(windows(directory), 10), 4)
    monkeypatch.setattr(ShardDir, "gather", failing)
    with Loader(windows(directory), 10) as loader:
        found = [next(loader), next(loader)]
        with pytest.raises(OSError, match="shard-00002"):
            next(loader)
        found += [next(loader), next(loader)]
    assert torch.equal(torch.cat(found), whole)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "apr-loader"]


def test_the_thread_ends_with_the_loader(directory):
    loader = Loader(windows(directory), 10)
    next(loader)
    assert len(loader_threads()) == 1
    loader.close()
    assert loader_threads() == []
    next(loader)  # a closed one can be used again
    del loader
    gc.collect()
    assert loader_threads() == []


STUCK = """
import sys, threading
from apr.data import Loader, ShardDir, Windows
def stuck(*_):
    print("waiting", flush=True)
    threading.Event().wait()  # a disk that never answers
ShardDir.gather = stuck
try:
    next(Loader(Windows(ShardDir(sys.argv[1]), 8), 4))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_is_heard_while_a_disk_does_not_answer(directory):
    command = [sys.executable, "-c", STUCK, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(timeout=30) == 0


def test_no_windows_and_no_such_rank(directory):
    with pytest.raises(RefusedError, match="not one window of 2000"):
        Loader(Windows(ShardDir(directory), 2000), 1)
    for rank, world_size, batch_size in ((2, 2, 1), (-1, 2, 1), (0, 1, 0)):
        with pytest.raises(ValueError, match="rank"):
            Loader(windows(directory), batch_size, rank=rank, world_size=world_size)


@pytest.mark.cuda
def test_a_gpu_gets_the_same_ids_of_any_size(directory):
    high = np.fromfile(directory / "shard-00000.bin", "<u4")
    high[:100] = 2**32 - 1 - np.arange(100)
    high.tofile(directory / "shard-00000.bin")
    expected = take(Loader(windows(directory), 10, seed=2), 40)
    found = take(Loader(windows(directory), 10, seed=2, device="cuda"), 40)
    assert found.device.type == "cuda"
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), expected)

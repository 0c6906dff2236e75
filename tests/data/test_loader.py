"""The loader: one order for any batches and ranks, a small state, and a thread that reads ahead."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import apr
from apr.data import Loader, LoaderState, ShardDir, Windows, repair
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


@pytest.mark.parametrize(("batch_size", "world_size", "turn"), [(4, 1, 3), (2, 2, 3), (3, 4, 1), (1, 3, 4)])
def test_a_rank_may_take_several_batches_in_a_row(directory, batch_size, world_size, turn):
    """A step's windows are the same, and each rank has a contiguous part of them."""
    source = windows(directory)
    whole = take(Loader(source, 12, seed=1), 14)
    ranks = []
    for rank in range(world_size):
        shared = {"rank": rank, "world_size": world_size, "turn": turn}
        first = Loader(source, batch_size, seed=1, **shared)
        ranks.append(take(first, 5 * turn))
        # Resumed between two steps, from the state of any rank.
        rest = Loader(source, batch_size, state=first.state, **shared)
        ranks[-1] = torch.cat([ranks[-1], take(rest, 9 * turn)])
    cut = torch.stack([part.reshape(14, turn * batch_size, T + 1) for part in ranks], 1)
    assert torch.equal(cut.reshape(-1, T + 1), whole)


@pytest.mark.parametrize("taken", [0, 1, 12, 13, 40])
def test_a_state_that_went_through_json_resumes_at_the_same_window(directory, taken):
    whole = take(Loader(windows(directory), 10, seed=7), 60)
    loader = Loader(windows(directory), 10, seed=7)
    if taken:
        take(loader, taken)
    kept = LoaderState.from_dict(json.loads(json.dumps(loader.state.to_dict())))
    assert kept == loader.state
    assert (kept.epoch, kept.position) == divmod(10 * taken, 125)
    rest = take(Loader(windows(directory), 10, state=kept), 60 - taken)  # the seed comes from the state
    assert torch.equal(rest, whole[10 * taken :])


def test_resuming_costs_the_same_at_any_position(directory, monkeypatch):
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
            patch.setattr("apr.data.windows.TrainingOrder.windows", counted(order, lambda _, __, n: n))
            patch.setattr(ShardDir, "gather", counted(gather, lambda *given: given[2].size))
            patch.setattr("apr.data.shards.scan_shards", counted(scan, lambda *_: "scan"))
            take(Loader(source, 10, state=state, prefetch=1), 1)
        return done[:2]

    assert work(0, 0) == work(0, 120) == work(10**9, 3) == [10, 10 * (T + 1)]


def test_a_state_of_other_data_is_refused_and_the_difference_is_named(directory):
    state = Loader(windows(directory), 10).state
    ids = np.fromfile(directory / "shard-00001.bin", "<u4")
    ids[5] += 1
    ids.tofile(directory / "shard-00001.bin")
    repair(directory, verify=True, force=True)
    with pytest.raises(RefusedError, match="corpus_sha256"):
        Loader(windows(directory), 10, state=state)
    with pytest.raises(RefusedError, match="seq_length"):
        Loader(Windows(ShardDir(directory), 9), 10, state=state)
    with pytest.raises(RefusedError, match="shuffle"):
        Loader(windows(directory), 10, state=state, shuffle=False)


def test_the_shard_that_changed_is_named_if_its_encoder_recorded_its_hash(directory):
    rows = [
        {"name": s.name, "tokens": t, "sha256": s.sha256}
        for s, t in zip(ShardDir(directory).scan().shards, [300, 400, 303], strict=True)
    ]
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"shards": rows}))
    state = Loader(windows(directory), 10).state
    np.zeros(400, "<u4").tofile(directory / "shard-00001.bin")
    with pytest.raises(RefusedError, match=r"shard-00001\.bin"):
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
        ({"position": -1}, "position is -1"),
        ({"seed": "1"}, "seed is '1'"),
        ({"epoch": True}, "epoch is True"),
        ({"fingerprint": None}, "fingerprint is None"),
        ({"fingerprint": {"shard_count": 3}}, "total_tokens is None"),
    ],
)
def test_an_invalid_state_is_refused_with_the_field(directory, change, names):
    kept = Loader(windows(directory), 10).state.to_dict()
    with pytest.raises(RefusedError, match=names):
        LoaderState.from_dict(kept | change)


def test_a_shard_that_shrinks_or_disappears_is_named_when_a_batch_is_taken(directory):
    loader, later = (Loader(windows(directory), 10, seed=1) for _ in range(2))
    with loader:
        next(loader)
        (directory / "shard-00001.bin").write_bytes(bytes(8))
        with pytest.raises(apr.TruncatedError, match=r"shard-00001\.bin.*byte 8"):
            take(loader, 30)
    (directory / "shard-00001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.bin"):
        take(later, 30)


def overwrite(path):
    with path.open("r+b") as file:  # the file is never shorter meanwhile
        file.write(b"\7\0\0\0" * (path.stat().st_size // 4))


def grow(path):
    with path.open("ab") as file:
        file.write(bytes(4))


def replace(path):
    other = path.with_suffix(".new")
    np.full(path.stat().st_size // 4, 7, "<u4").tofile(other)
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), FileNotFoundError),
        (overwrite, RefusedError),
        (replace, RefusedError),
        (lambda path: path.write_bytes(bytes(8)), apr.TruncatedError),
        (grow, RefusedError),
    ],
    ids=["removed", "overwritten", "replaced", "shorter", "longer"],
)
def test_an_open_shard_that_changes_is_named(directory, change, error):
    expected = take(Loader(windows(directory), 10, seed=1), 30)
    with Loader(windows(directory), 10, seed=1, poll_seconds=0) as loader:
        batches = [next(loader) for _ in range(12)]  # every shard is open
        change(directory / "shard-00001.bin")
        with pytest.raises(error, match=r"shard-00001\.bin"):
            batches += [next(loader) for _ in range(18)]
        assert torch.equal(torch.cat(batches), expected[: 10 * len(batches)])
        with pytest.raises(error, match=r"shard-00001\.bin"):  # and again on the next call
            [next(loader) for _ in range(18)]


def test_a_copied_or_touched_shard_is_the_same(directory):
    expected = take(Loader(windows(directory), 10, seed=1), 30)
    with Loader(windows(directory), 10, seed=1, poll_seconds=0) as loader:
        batches = [next(loader)]
        path = directory / "shard-00001.bin"
        other = path.with_suffix(".new")
        other.write_bytes(path.read_bytes())
        other.rename(path)
        os.utime(path, ns=(1, 1))
        batches += [next(loader) for _ in range(29)]
    assert torch.equal(torch.cat(batches), expected)


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


def test_a_used_loader_continues_in_a_fork(directory):
    command = [sys.executable, "-c", FORKED, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    parent, child = done.stdout.splitlines()
    assert parent == child
    expected = take(Loader(windows(directory), 4, seed=1), 6)[4:]
    assert json.loads(parent) == expected.reshape(5, 4, T + 1).tolist()


def test_a_pickled_copy_continues_at_the_same_window(directory):
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
def test_a_position_out_of_range_is_refused_at_once(directory, change):
    kept = LoaderState.from_dict(Loader(windows(directory), 10).state.to_dict() | change)
    ((name, value),) = change.items()
    with pytest.raises(RefusedError, match=f"{name} {value}"):
        Loader(windows(directory), 10, state=kept)


def test_invalid_seeds_and_states_are_refused(directory):
    for seed in (-1, 2**64):
        with pytest.raises(RefusedError, match=f"seed {seed}"):
            Loader(windows(directory), 10, seed=seed)
    take(Loader(windows(directory), 10, seed=2**64 - 1), 1)
    for kept in (None, [], "x", 3):
        with pytest.raises(RefusedError, match="not an object"):
            LoaderState.from_dict(kept)


def test_ids_from_two_to_the_31_on_stay_positive(directory):
    ids = np.fromfile(directory / "shard-00000.bin", "<u4")
    ids[:300] = 2**32 - 1 - np.arange(300)
    ids.tofile(directory / "shard-00000.bin")
    found = take(Loader(windows(directory), 10, shuffle=False), 1)
    assert found[0].tolist() == [2**32 - 1 - n for n in range(T + 1)]


def test_a_failed_batch_is_read_again_by_the_next_call(directory, monkeypatch):
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


def test_ctrl_c_works_while_a_disk_does_not_answer(directory):
    command = [sys.executable, "-c", STUCK, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(timeout=30) == 0


def test_too_few_ids_and_impossible_ranks_are_refused(directory):
    with pytest.raises(RefusedError, match="2000"):
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

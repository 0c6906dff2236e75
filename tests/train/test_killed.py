"""Killed at any call, or out of disk space: a checkpoint remains, and the run ends in the same bytes."""

import json
from dataclasses import replace

import pytest
from tests.conftest import LONG
from tests.train import children
from tests.train.conftest import checkpoints, left_by

import apr

# Runs, and processes of each that are killed before it may end.
RUNS, KILLS_PER_RUN = (100, 5) if LONG else (4, 5)
# A run makes about 8,300 calls, and 16 of 20 kills are reached (the last one of each run comes too late).
MIN_CALLS, MIN_KILLS = 1_000, RUNS * KILLS_PER_RUN // 2
# Fields of result.json that differ from run to run.
MEASURED = ("wall_seconds", "tokens_per_second", "peak_memory_bytes", "resumed_from")


def test_a_kill_at_any_call_leaves_the_same_bytes(options, tmp_path):
    alone = options(run_dir=tmp_path / "alone", num_steps=8, eval_every=4, save_every=1, keep=2)
    calls = children.count_calls(alone)
    # Fewer would mean that calls are not counted, and then no child would be killed.
    assert calls > MIN_CALLS
    expected = left_by(alone.run_dir)
    kills = 0
    for number in range(RUNS):
        config = replace(alone, run_dir=tmp_path / f"run-{number}")
        for kill in range(KILLS_PER_RUN):
            # Evenly over all calls of a run, the first kills of the first run earliest.
            share = (kill * RUNS + number + 0.5) / (KILLS_PER_RUN * RUNS)
            started = (config.run_dir / "config.yaml").exists()
            child = children.start(
                children.run_and_die_at_call, replace(config, resume=started), int(share * calls)
            )
            child.join()
            # 0: a resumed run has fewer calls left. No checkpoint shortens the first one of a run.
            assert child.exitcode == -9 or (kill > 0 and child.exitcode == 0)
            kills += child.exitcode == -9
            for path in config.run_dir.glob("ckpt/*.apr"):
                assert apr.verify(path).ok
        started = (config.run_dir / "config.yaml").exists()
        child = children.start(children.run, replace(config, resume=started))
        child.join()
        assert child.exitcode == 0
        assert left_by(config.run_dir) == expected
        names = ({path.name for path in (run / "ckpt").iterdir()} for run in (config.run_dir, alone.run_dir))
        assert next(names) == next(names)
    assert kills >= MIN_KILLS


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        ("checkpoint.snapshot", "write", 2),
        ("checkpoint.snapshot", "load", 2),
        ("checkpoint.saver", "write_json", 2),
        ("checkpoint.saver", "prune", 2),
        ("loop", "learning_rate", 9),
        ("finish", "write_json", 1),
    ],
)
def test_a_kill_at_a_step_of_saving_leaves_the_same_bytes(options, train, tmp_path, module, name, when):
    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    config = options()
    child = children.start(children.run_and_die, config, module, name, when)
    child.join()
    assert child.exitcode == -9
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.exit_code) == ("BUDGET_SPENT", 0)
    assert left_by(config.run_dir) == left_by(alone.run_dir)
    ours, theirs = (json.loads((c.run_dir / "result.json").read_text()) for c in (config, alone))
    assert {k: v for k, v in ours.items() if k not in MEASURED} == {
        k: v for k, v in theirs.items() if k not in MEASURED
    }


@pytest.mark.parametrize("how", ["full disk", "limit on the size of files"])
def test_no_room_ends_the_run_with_the_last_good_checkpoint(options, train, tmp_path, how):
    """Both a file system that is full, if one may be mounted, and a limit on the size of files."""
    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    expected = checkpoints(alone.run_dir)
    size = len(expected["epoch-000.apr"])
    target = children.fill_the_disk if how == "full disk" else children.limit_files
    child = children.start(target, options(), expected, size)
    child.join()
    if child.exitcode == children.NO_MOUNT:
        pytest.skip("this process may not mount a file system; the limit on files is tested instead")
    assert child.exitcode == 0

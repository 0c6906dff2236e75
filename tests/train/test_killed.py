"""Killed at any moment, or out of disk: something valid is there, and the run ends in the same bytes."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
from tests.conftest import LONG
from tests.train import children
from tests.train.conftest import checkpoints, left_by

import apr

KILLS = 500 if LONG else 20
# Of result.json: differ from run to run.
MEASURED = ("wall_seconds", "tokens_per_second", "peak_memory_bytes", "resumed_from")


@pytest.fixture
def alone(options, tmp_path):
    """A run that nobody disturbed, and how long it took."""
    config = options(run_dir=tmp_path / "alone", num_steps=8, steps_per_epoch=4, save_every=1, keep=2)
    finish(config)  # the first start waits for torch to be imported
    started = time.monotonic()
    finish(replace(config, force=True))
    return config, time.monotonic() - started


def finish(config):
    child = children.start(children.run, config)
    child.join()
    assert child.exitcode == 0


def test_killed_at_random_moments(alone, tmp_path):
    config, seconds = alone
    expected = left_by(config.run_dir)
    moments, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        now = replace(config, run_dir=tmp_path / f"run-{runs}")
        while True:
            started = (now.run_dir / "config.yaml").exists()
            child = children.start(children.run, replace(now, resume=started))
            child.join(moments.uniform(0, seconds) if kills < KILLS else None)
            if child.exitcode is not None:
                break
            child.kill()
            child.join()
            kills += 1
            for path in now.run_dir.glob("ckpt/*.apr"):
                assert apr.verify(path).ok
        assert child.exitcode == 0
        assert left_by(now.run_dir) == expected
        assert {path.name for path in (now.run_dir / "ckpt").iterdir()} == {
            path.name for path in (config.run_dir / "ckpt").iterdir()
        }
        runs += 1


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_directory_in_which_a_run_goes_on_is_refused_to_another(
    options, train, flags, capsys, tmp_path, number, exit_code
):
    """Whatever it asks for; and once the first process is gone, however it went, nothing is in the way."""
    from apr.cli import main

    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    config = options()
    child = children.start_and_stay(config)
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    for more in ([], ["--resume"], ["--force"], ["--num-steps", "999"]):
        assert main(["pretrain", *flags(config), *more]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{config.run_dir}: another run is writing here: wait for it" in line
    assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("run.bak*"))
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == exit_code
    assert train(options(resume=True)).status == "BUDGET_SPENT"
    assert checkpoints(config.run_dir) == checkpoints(alone.run_dir)


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        ("checkpoint.snapshot", "write", 2),
        ("checkpoint.snapshot", "load", 2),
        ("checkpoint.saver", "write_json", 2),
        ("checkpoint.saver", "prune", 2),
        ("loop", "learning_rate", 9),
        ("run", "write_json", 1),
    ],
)
def test_killed_at_the_places_that_matter(options, train, tmp_path, module, name, when):
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
    """A file system of its own that is full, where one may be mounted; and everywhere a limit on files."""
    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    expected = checkpoints(alone.run_dir)
    size = len(expected["epoch-000.apr"])
    target = children.fill_the_disk if how == "full disk" else children.limit_files
    child = children.start(target, options(), expected, size)
    child.join()
    if child.exitcode == children.NO_MOUNT:
        pytest.skip("a file system of its own may not be mounted here; the limit on files is tested instead")
    assert child.exitcode == 0

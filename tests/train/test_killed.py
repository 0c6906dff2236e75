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

import apr

KILLS = 500 if LONG else 20
# Differ from run to run.
TIMES = ("wall_seconds", "tokens_per_sec")


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


def left_by(run):
    """All that a run leaves and that its data and options decide: bytes, or records without times."""
    found = {path.name: path.read_bytes() for path in run.glob("ckpt/*.apr")}
    for path in (*run.glob("ckpt/*.json"), run / "train.jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        records = [json.loads(line) for line in lines]
        found[path.name] = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
    return found


def checkpoints(run):
    return {path.name: path.read_bytes() for path in (run / "ckpt").glob("epoch-*.apr")}


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
        ("checkpoint", "write", 2),
        ("checkpoint", "load", 2),
        ("saver", "write_json", 2),
        ("saver", "prune", 2),
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
    assert checkpoints(config.run_dir) == checkpoints(alone.run_dir)


def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(options, train, tmp_path):
    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    expected = checkpoints(alone.run_dir)
    size = len(expected["epoch-000.apr"])
    assert 2 * size < 4 << 20, "both must fit at the end"
    child = children.start(children.fill_the_disk, options(), expected, (4 << 20) - size * 3 // 2)
    child.join()
    if child.exitcode == children.NO_MOUNT:
        pytest.skip("a file system of its own may not be mounted here")
    assert child.exitcode == 0

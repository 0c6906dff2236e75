"""A rank that fails ends all of them, and the run says which one it was."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from tests.conftest import LONG
from tests.train.conftest import write_shards
from tests.train.parallel import ranks

import apr

HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("rank", "how", "size", "word"),
    [
        (2, "dies", 3, "died"),
        (0, "dies", 3, "died"),
        (1, "hangs", 2, "--rank-timeout"),
        (1, "an error", 3, "a fault of its own"),
        (0, "an error", 2, "a fault of its own"),
    ],
    ids=str,
)
def test_a_rank_that_fails_is_named_by_the_lowest_that_is_left(options, rank, how, size, word):
    config = options(
        f"{how}-{rank}-{size}",
        batch_size=12 // size,
        num_steps=8,
        eval_every=4,
        rank_timeout=3 if how == "hangs" else 300,
    )
    group = ranks.Ranks(size, ranks.fail, config, rank, 6, how)
    left = [n for n in range(size) if n != rank or how == "an error"]
    ends = [group.result(n) for n in left]
    if how == "hangs":
        os.kill(group.processes[rank].pid, signal.SIGKILL)
    result = json.loads((config.run_dir / "result.json").read_text())
    assert (result["status"], result["steps_completed"]) == ("FAILED", 5)
    assert word in result["detail"]
    assert rank == 0 == left[0] or f"rank {rank} on {HOST}" in result["detail"]
    assert {(status, code) for status, code, _ in ends} == {("FAILED", result["exit_code"])}
    # One voice: that of the rank that wrote the result.
    assert [word in text for _, _, text in ends] == [n == left[0] for n in left]
    assert result["last_checkpoint"] == "ckpt/epoch-000.apr"
    assert apr.verify(config.run_dir / "ckpt/epoch-000.apr").ok


def test_a_bad_number_is_traced_to_its_rank(options):
    config = options("nan", batch_size=6, num_steps=8, eval_every=4)
    ends = ranks.Ranks(2, ranks.fail, config, 1, 6, "a bad number").results()
    assert {end[:2] for end in ends} == {("NUMERICAL_INSTABILITY", 5)}
    result = json.loads((config.run_dir / "result.json").read_text())
    assert f"on rank 1 on {HOST}" in result["detail"]
    assert "rank 0" not in result["detail"]


DIFFERENT = {
    "--lr": {"lr": 1e-3},
    "--patience": {"patience": 7},
    "the hash of --dataset": {"dataset": "other-shards"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_rank_with_other_options_or_data_is_refused_by_name(options, directory, what):
    changes = dict(DIFFERENT[what])
    if "dataset" in changes:
        changes["dataset"] = write_shards(directory / "other-shards", tokens=60_000, seed=1)
    config = options("different", batch_size=6, num_steps=2)
    ends = ranks.Ranks(2, ranks.train_differently, config, changes).results()
    assert [(status, code) for status, code, _ in ends] == [("refused", 5)] * 2
    for _, _, text in ends:
        assert text.startswith(f"rank 1 on {HOST}: {what}")
    assert not config.run_dir.exists()


# Each starts three processes that import torch.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] if LONG else [signal.SIGINT])
def test_a_signal_to_the_launcher_saves_once(options, flags, number):
    """As Ctrl-C on a terminal does, and a scheduler: to the launcher alone, which passes it on."""
    config = options(f"launched-{number}", batch_size=3, num_steps=100_000, allow_shard_cycle=True)
    command = [sys.executable, "-m", "apr", "pretrain", "--gpus", "2", *flags(config)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in launcher.stdout:
        if line.startswith("step "):
            break
    launcher.send_signal(number)
    out, err = launcher.communicate()
    assert (launcher.returncode, err) == (128 + number, "")
    assert out.count("INTERRUPTED") == 1
    result = json.loads((config.run_dir / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("INTERRUPTED", 128 + number)
    saved = [path.name for path in (config.run_dir / "ckpt").glob("step-*.apr")]
    assert saved == [f"step-{result['steps_completed']:08}.apr"]

"""Killed, interrupted, gone on: the same bytes as a run that was left alone."""

import json
import os
import signal
import subprocess
import sys

import pytest
from tests.train.conftest import BASE


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal while a step or an evaluation is being recorded."""

    def arm(number, step, field="train_loss"):
        from apr.train.metrics import MetricsFile

        write = MetricsFile.write

        def wrapped(self, record):
            write(self, record)
            if record["step"] == step and field in record:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(MetricsFile, "write", wrapped)

    return arm


def checkpoints(run):
    return {p.name: p.read_bytes() for p in (run / "ckpt").glob("epoch-*.apr")}


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [3, 5, 7], ids=["within-an-epoch", "last-of-an-epoch", "second-epoch"])
def test_a_signal_saves_and_resume_ends_with_the_same_bytes(
    options, train, signal_at, monkeypatch, tmp_path, number, exit_code, step
):
    alone = options(run_dir=tmp_path / "alone")
    expected = train(alone)
    with monkeypatch.context() as patched:
        from apr.train.metrics import MetricsFile

        signal_at(number, step)
        stopped = train(options())
        patched.setattr(MetricsFile, "write", MetricsFile.write)
    assert (stopped.status, stopped.exit_code) == ("INTERRUPTED", exit_code)
    assert stopped.steps_completed == step + 1
    assert f"step-{step + 1:08}.apr" in stopped.last_checkpoint
    assert json.loads((alone.run_dir.parent / "run" / "result.json").read_text())["status"] == "INTERRUPTED"

    monkeypatch.undo()
    resumed = train(options(resume=True))
    assert resumed.resumed_from == stopped.last_checkpoint
    assert (resumed.status, resumed.steps_completed) == (expected.status, 12)
    assert resumed.val_loss_history == expected.val_loss_history
    run = tmp_path / "run"
    assert checkpoints(run) == checkpoints(alone.run_dir)
    assert (run / "result.json.bak-1").exists()
    kept = ("step", "train_loss", "grad_norm", "lr", "val_loss", "tokens_seen")
    lines = [
        [
            {key: r.get(key) for key in kept}
            for r in map(json.loads, (d / "train.jsonl").read_text().splitlines())
        ]
        for d in (run, alone.run_dir)
    ]
    assert lines[0] == lines[1]


def test_a_signal_before_the_first_step_leaves_a_result(options, train, monkeypatch):
    from apr.train import loop

    evaluate = loop.evaluate

    def interrupted(*args, on_progress, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, on_progress=on_progress, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", interrupted)
        stopped = train(options())
    assert (stopped.status, stopped.exit_code, stopped.last_checkpoint) == ("INTERRUPTED", 143, None)
    assert train(options(resume=True)).steps_completed == 12


KILLER = """
import os, signal, sys
from apr.train import checkpoint, loop
name, when = sys.argv[1], int(sys.argv[2])
original, calls = getattr(loop, name), [0]
def wrapped(*args, **kwargs):
    calls[0] += 1
    if calls[0] == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(loop, name, wrapped)
from apr.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("where", "when"), [("write_checkpoint", 2), ("write_json", 2), ("prune", 2), ("learning_rate", 9)]
)
def test_a_killed_run_goes_on_with_the_same_bytes(options, train, flags, tmp_path, where, when):
    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    config = options()
    command = [sys.executable, "-c", KILLER, where, str(when), "pretrain", *flags(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.exit_code) == ("BUDGET_SPENT", 0)
    assert checkpoints(config.run_dir) == checkpoints(alone.run_dir)


def test_resume_needs_no_other_flag(options, train, signal_at, monkeypatch, tmp_path, capsys):
    from apr.cli import main

    signal_at(signal.SIGTERM, 3)
    train(options())
    monkeypatch.undo()
    assert main(["pretrain", "--run-dir", str(tmp_path / "run"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps_completed"] == 12


@pytest.mark.parametrize(
    "change", [{"seq_length": 16}, {"lr": 1e-4}, {"seed": 1}, {"num_steps": 20}, {"num_steps": 11}]
)
def test_a_resumed_run_keeps_its_options(options, train, change):
    from apr.errors import RefusedError

    train(options())
    with pytest.raises(RefusedError, match=next(iter(change)).replace("_", "-")):
        train(options(resume=True, **change))


def test_extend_goes_further(options, train):
    train(options())
    assert train(options(resume=True, extend=True, num_steps=15)).steps_completed == 15


def test_shards_that_changed_are_refused(options, train, signal_at, monkeypatch, make_shards, tmp_path):
    import shutil

    from apr.errors import RefusedError

    signal_at(signal.SIGTERM, 3)
    train(options())
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "shards")
    make_shards(seed=9)
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(RefusedError, match="no longer those"):
        train(options(resume=True))
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_a_damaged_checkpoint_is_never_passed_over(options, train, signal_at, monkeypatch, tmp_path):
    from apr import AprError

    signal_at(signal.SIGTERM, 8)
    stopped = train(options())
    monkeypatch.undo()
    path = tmp_path / "run" / stopped.last_checkpoint
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    metrics = (tmp_path / "run" / "train.jsonl").read_bytes()
    with pytest.raises(AprError, match=path.name):
        train(options(resume=True))
    path.write_bytes(content[:1000])
    with pytest.raises(AprError, match=path.name):
        train(options(resume=True))
    assert (tmp_path / "run" / "train.jsonl").read_bytes() == metrics


def test_pruning_keeps_the_best_and_says_what_went(options, train, tmp_path):
    result = train(options(num_steps=10, steps_per_epoch=2, keep=1))
    ckpt = tmp_path / "run" / "ckpt"
    assert {p.name for p in ckpt.glob("*.apr")} == {
        "epoch-004.apr",
        result.best_checkpoint.removeprefix("ckpt/"),
    }
    pruned = [json.loads(p.read_text()).get("pruned", False) for p in sorted(ckpt.glob("*.metadata.json"))]
    assert pruned == [not (ckpt / f"epoch-{n:03}.apr").exists() for n in range(5)]
    assert next(g for g in result.gates if g.name == "artefacts").passed


def test_a_base_file_is_never_a_checkpoint():
    from apr.container.file import load
    from apr.errors import RefusedError
    from apr.train.checkpoint import state_of

    with pytest.raises(RefusedError, match="no training state"):
        state_of(load(BASE))

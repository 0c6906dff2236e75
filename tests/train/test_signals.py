"""SIGINT and SIGTERM: saved, and gone on from as if nothing had been."""

import json
import os
import signal
from dataclasses import replace

import pytest
from tests.train import children
from tests.train.conftest import checkpoints, left_by

BOTH = pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


@BOTH
@pytest.mark.parametrize("step", [3, 5, 7], ids=["within-an-epoch", "last-of-an-epoch", "second-epoch"])
def test_a_signal_saves_and_resume_ends_with_the_same_bytes(
    options, train, train_until, tmp_path, number, exit_code, step
):
    alone = options(run_dir=tmp_path / "alone")
    expected = train(alone)
    stopped = train_until(options(), step, number)
    assert (stopped.status, stopped.exit_code) == ("INTERRUPTED", exit_code)
    assert stopped.steps_completed == step + 1
    assert f"step-{step + 1:08}.apr" in stopped.last_checkpoint
    assert json.loads((alone.run_dir.parent / "run" / "result.json").read_text())["status"] == "INTERRUPTED"

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


@pytest.mark.parametrize(
    ("number", "exit_code", "evaluation", "saved"),
    [
        (signal.SIGTERM, 143, 1, None),
        (signal.SIGTERM, 143, 2, "ckpt/step-00000006.apr"),
        (signal.SIGINT, 130, 2, "ckpt/step-00000006.apr"),
        (signal.SIGTERM, 143, 3, "ckpt/step-00000012.apr"),
    ],
    ids=["before-the-first-step", "of-an-epoch", "of-an-epoch-ctrl-c", "of-the-last-epoch"],
)
def test_a_process_that_is_stopped_within_an_evaluation(
    options, train, tmp_path, number, exit_code, evaluation, saved
):
    """What was evaluated by then is dropped, what was trained is not; going on evaluates anew."""
    alone, config = options(run_dir=tmp_path / "alone"), options()
    train(alone)
    child = children.start_and_stay(config, evaluation=evaluation)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == exit_code
    result = json.loads((config.run_dir / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("INTERRUPTED", exit_code)
    assert result["last_checkpoint"] == saved
    assert len(result["val_loss_history"]) == max(0, evaluation - 2)
    child = children.start(children.run, replace(config, resume=True))
    child.join()
    assert child.exitcode == 0
    assert left_by(config.run_dir) == left_by(alone.run_dir)


@BOTH
def test_a_second_signal_waits_for_no_checkpoint(
    options, train, train_until, monkeypatch, tmp_path, number, exit_code
):
    """The thread is stuck in a write until the run has ended; it ends all the same.

    The directory is its own until it has ended too.
    """
    import threading

    from apr.errors import RefusedError
    from apr.train.checkpoint.saver import Saver
    from apr.train.checkpoint.snapshot import Snapshot

    over, waiting = threading.Event(), threading.Event()
    write, join = Snapshot.write, Saver.join

    def stuck(self, path, *, proceed):
        waiting.wait()
        os.kill(os.getpid(), number)
        over.wait()
        return write(self, path, proceed=proceed)

    def awaited(self):
        if self._thread is not None:
            waiting.set()
        join(self)

    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "write", stuck)
        patched.setattr(Saver, "join", awaited)
        stopped = train_until(options(), 3, number)
    with pytest.raises(RefusedError, match="another run is writing here"):
        train(options(resume=True))
    over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("apr-checkpoint"):
            thread.join()
    assert (stopped.status, stopped.exit_code) == ("INTERRUPTED", exit_code)
    assert "second signal" in stopped.detail
    assert not list((tmp_path / "run" / "ckpt").glob("*"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_code"] == exit_code
    assert train(options(resume=True)).steps_completed == 12

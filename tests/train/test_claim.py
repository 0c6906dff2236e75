"""A run directory belongs to one run at a time, until the last byte is written."""

import json
import os
import signal
import threading

import pytest
from tests.train import children
from tests.train.conftest import checkpoints

BOTH = pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_the_directory_of_a_running_run_is_refused_to_another(
    options, train, flags, capsys, tmp_path, number, exit_code
):
    """Whatever flags it has. Once the first process has ended, however it ended, nothing is in the way."""
    from apr.cli import main

    alone = options(run_dir=tmp_path / "alone")
    train(alone)
    config = options()
    child = children.start_and_stay(config)
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    for more in ([], ["--resume"], ["--force"], ["--num-steps", "999"]):
        assert main(["pretrain", *flags(config), *more]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{config.run_dir}: " in line
    assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("run.bak*"))
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == exit_code
    assert train(options(resume=True)).status == "BUDGET_SPENT"
    assert checkpoints(config.run_dir) == checkpoints(alone.run_dir)


@BOTH
def test_a_second_signal_does_not_wait_for_a_checkpoint(
    options, train, train_until, monkeypatch, tmp_path, number, exit_code
):
    """The saver is stuck in a write until after the run has ended. Until then the directory stays claimed."""

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
    with pytest.raises(RefusedError, match="another run"):
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

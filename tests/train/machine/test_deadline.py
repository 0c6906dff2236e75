"""`--max-minutes`: a run ends in time with its work saved, and resumes to the same bytes."""

import io
import json
import time

import pytest
from tests.train.conftest import left_by

from apr.train import Callbacks, pretrain
from apr.train.machine.deadline import Deadline

HOUR = 3600.0


def test_what_would_end_too_late_is_not_begun():
    now = time.monotonic()
    assert not Deadline(now, None).is_before_end_of(1e9)
    assert not Deadline(now, 60).is_before_end_of(HOUR / 2)
    for started, seconds in ((now, HOUR), (now - HOUR, 0), (now - HOUR / 2, HOUR / 2)):
        assert Deadline(started, 60).is_before_end_of(seconds)


@pytest.fixture
def pass_time(monkeypatch):
    """Let hours pass for the deadline alone."""
    from types import SimpleNamespace

    from apr.train.machine import deadline

    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr(deadline, "time", clock)

    def advance(hours):
        passed[0] += hours * HOUR

    return advance


@pytest.mark.parametrize(
    ("when", "value", "steps", "saved"),
    [
        ("step", 0, 1, "ckpt/step-00000001.apr"),
        ("step", 5, 6, "ckpt/step-00000006.apr"),
        ("evaluation", 6, 6, "ckpt/epoch-000.apr"),
        ("step", 11, 12, "ckpt/step-00000012.apr"),
    ],
)
def test_a_run_that_is_out_of_time_saves_and_resumes_to_the_same_bytes(
    options, train, pass_time, tmp_path, when, value, steps, saved
):
    """Also where an evaluation is due: it is made after the resume."""
    train(options(run_dir=tmp_path / "alone"))

    def on_record(record):
        if record.step == value:
            pass_time(2)

    config = options(max_minutes=60)
    result = pretrain(config, callbacks=Callbacks(**{f"on_{when}": on_record}), out=io.StringIO())
    assert (result.status, result.exit_code, result.steps_completed) == ("INTERRUPTED", 124, steps)
    assert "--max-minutes 60" in result.detail
    assert result.last_checkpoint == saved
    assert json.loads((config.run_dir / "result.json").read_text())["exit_code"] == 124
    pass_time(-2)
    resumed = train(options(max_minutes=60, resume=True))
    assert (resumed.status, resumed.exit_code) == ("BUDGET_SPENT", 0)
    assert left_by(config.run_dir) == left_by(tmp_path / "alone")


def test_time_that_start_up_used_counts(options, flags, run):
    """The command has no time left after its checks; the run directory can still be resumed."""
    config = options(max_minutes=0.001)
    code, _, _ = run("pretrain", *flags(config))
    assert code == 5
    result = json.loads((config.run_dir / "result.json").read_text())
    assert (result["status"], result["exit_code"], result["steps_completed"]) == ("REFUSED", 5, 0)
    assert "larger --max-minutes" in result["detail"]
    assert run("pretrain", "--run-dir", config.run_dir, "--resume", "--max-minutes", "None")[0] == 0


@pytest.mark.parametrize(
    ("field", "value", "resumable"),
    [("train_loss", 3, True), ("train_loss", 5, True), ("val_loss", 6, True), ("val_loss", 0, False)],
    ids=["in an interval", "evaluation due", "evaluated", "no step yet"],
)
def test_a_time_in_which_nothing_can_be_saved_is_not_124(
    options, train, train_until, tmp_path, field, value, resumable
):
    """A job script that submits itself again at 124 would otherwise do so forever."""
    train(options(run_dir=tmp_path / "alone"))
    train_until(options(), value, field=field)
    for _ in range(2):
        result = train(options(resume=True, max_minutes=0.001))
        assert (result.status, result.exit_code) == ("REFUSED", 5)
        assert "larger --max-minutes" in result.detail
        assert (result.last_checkpoint is not None) == resumable
    assert train(options(resume=True)).status == "BUDGET_SPENT"
    assert left_by(tmp_path / "run") == left_by(tmp_path / "alone")

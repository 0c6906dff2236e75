"""A run inside somebody's program: callbacks, threads, notebooks, scripts that read its lines."""

import asyncio
import io
import json
import os
import sys
import threading

import pytest

from apr.train import Callbacks


@pytest.fixture
def short(options):
    """Three steps, evaluated twice."""

    def make(**changes):
        return options(num_steps=3, steps_per_epoch=2, **changes)

    return make


def test_callbacks_get_what_the_files_have(short):
    from apr.train import CheckpointRecord, EvaluationRecord, StepRecord, pretrain

    config, seen = short(), []
    told = Callbacks(on_step=seen.append, on_evaluation=seen.append, on_checkpoint=seen.append)
    pretrain(config, callbacks=told, out=io.StringIO())
    lines = [json.loads(line) for line in (config.run_dir / "train.jsonl").read_text().splitlines()]
    steps, evaluations, checkpoints = (
        [record for record in seen if isinstance(record, kind)]
        for kind in (StepRecord, EvaluationRecord, CheckpointRecord)
    )
    assert [r.train_loss for r in steps] == [r["train_loss"] for r in lines if "train_loss" in r]
    assert [(r.step, r.val_loss) for r in evaluations] == [
        (r["step"], r["val_loss"]) for r in lines if "val_loss" in r
    ]
    assert [(r.step, r.epoch, r.path.name) for r in checkpoints] == [
        (2, 0, "epoch-000.apr"),
        (3, 1, "epoch-001.apr"),
    ]
    assert all(r.path.is_file() for r in checkpoints)


def test_a_callback_that_raises_ends_the_run_and_keeps_what_was_saved(short):
    from apr.train import pretrain

    def broken(record):
        if record.step == 2:
            raise ZeroDivisionError("mine")

    config = short()
    result = pretrain(config, callbacks=Callbacks(on_step=broken), out=io.StringIO())
    assert (result.status, result.exit_code) == ("FAILED", 1)
    assert "ZeroDivisionError: mine" in result.detail
    assert (config.run_dir / result.last_checkpoint).is_file()
    assert "broken" in (config.run_dir / "traceback.txt").read_text()


def test_a_run_leaves_the_process_as_it_was(short, train, tmp_path):
    """Twice in one process: the same bytes, and a caller's random numbers go on as if nothing had been."""
    import signal

    import torch

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = {thread.name for thread in threading.enumerate()}
    first, second = (short(run_dir=tmp_path / name) for name in "ab")
    train(first)
    assert torch.equal(torch.rand(3), expected)
    train(second)
    name = "ckpt/epoch-001.apr"
    assert (first.run_dir / name).read_bytes() == (second.run_dir / name).read_bytes()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert {thread.name for thread in threading.enumerate()} <= threads


def test_what_a_caller_set_of_torch_changes_nothing(short, train, tmp_path):
    import torch

    def bytes_of(name):
        config = short(run_dir=tmp_path / name)
        train(config)
        return (config.run_dir / "ckpt/epoch-001.apr").read_bytes()

    expected = bytes_of("plain")
    torch.set_default_dtype(torch.float64)
    try:
        assert bytes_of("float64") == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        assert bytes_of("no_grad") == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert bytes_of("inference") == expected


def test_a_disk_that_takes_no_more_keeps_no_verdict_back(short, monkeypatch):
    """Neither `result.json` nor `run.log` can be written: what came of the run is said, and it failed."""
    from apr.train import pretrain, run
    from apr.train.record import report

    def full(*_, **__):
        raise OSError(28, "No space left on device", "result.json")

    monkeypatch.setattr(run, "write_json", full)

    class Full(io.StringIO):
        name = "run.log"

        def write(self, _):
            full()

    keep = report.Report.keep

    def keeping(self, path):
        keep(self, path)
        self._log.close()
        self._log = Full()

    monkeypatch.setattr(report.Report, "keep", keeping)
    out = io.StringIO()
    result = pretrain(short(), out=out)
    assert (result.status, result.exit_code) == ("FAILED", 7)
    lines = out.getvalue().splitlines()
    assert "warning: run.log: No space left on device" in lines
    (verdict,) = [line for line in lines if line.startswith("FAILED: ")]
    assert "No space left on device" in verdict
    assert "by then BUDGET_SPENT: held-out loss" in verdict


def test_in_another_thread_and_under_a_running_event_loop(short, train, tmp_path):
    """As in a notebook: there a loop runs in the main thread, and standard output is no terminal."""

    async def cell():
        here = train(short(run_dir=tmp_path / "here"))
        return here, await asyncio.to_thread(train, short(run_dir=tmp_path / "there"))

    here, there = asyncio.run(cell())
    assert here.status == there.status == "BUDGET_SPENT"
    assert here.val_loss_history == there.val_loss_history


def test_scripts_read_a_line_for_each_thing(short, flags, capsys):
    from apr.cli import main

    assert main(["pretrain", *flags(short()), "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [e["event"] for e in events]
    assert [kind for kind in kinds if kind != "checkpoint"] == [
        "evaluation", "step", "step", "evaluation", "step", "evaluation", "result",
    ]  # fmt: skip
    assert kinds.count("checkpoint") == 2  # each as soon as it is verified: training went on meanwhile
    assert kinds.index("checkpoint") > 3
    told = [e for e in events if e["event"] != "checkpoint"]
    assert [e["step"] for e in told[:-1]] == [0, 0, 1, 2, 2, 3]
    saved = [e for e in events if e["event"] == "checkpoint"]
    assert [e["step"] for e in saved] == [2, 3]
    assert saved[0]["path"] == "ckpt/epoch-000.apr"
    assert events[-1]["status"] == "BUDGET_SPENT"
    assert "BUDGET_SPENT: " in err


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize("bad_step", [1, None], ids=["failed", "done"])
def test_a_reader_that_goes_away_changes_neither_the_run_nor_its_exit_code(
    short, flags, monkeypatch, arguments, bad_step
):
    """As under `apr pretrain … | head -1`."""
    from apr.cli import main
    from apr.train.record.metrics import MetricsFile

    write = MetricsFile.write

    def failing(self, record):
        if "train_loss" in record and record["step"] == bad_step:
            raise ZeroDivisionError
        write(self, record)

    monkeypatch.setattr(MetricsFile, "write", failing)
    reader, writer = os.pipe()
    os.close(reader)
    config = short()
    with os.fdopen(writer, "w") as gone:  # its end would raise too, were anything left in it
        monkeypatch.setattr("sys.stdout", gone)
        code = main(["pretrain", *flags(config), *arguments])
    result = json.loads((config.run_dir / "result.json").read_text())
    expected = ("BUDGET_SPENT", 0, 3) if bad_step is None else ("FAILED", 1, 1)
    assert (result["status"], code, result["steps_completed"]) == expected
    assert f"{result['status']}: " in (config.run_dir / "run.log").read_text()


def test_the_last_lines_say_what_was_achieved_and_where_it_is(short):
    from apr.train import pretrain

    out, config = io.StringIO(), short()
    result = pretrain(config, out=out)
    *_, verdict, spent, best, where = out.getvalue().splitlines()
    assert verdict == f"BUDGET_SPENT: {result.detail}"
    assert verdict.endswith("after 3 steps; target 2.2 not met")
    assert spent.startswith("3 steps, 384 tokens in 0:0")
    assert str(config.run_dir / result.best_checkpoint) in best
    assert "loss.png" in where
    assert (config.run_dir / "run.log").read_text() == out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "loss.png"), ValueError("one\ntwo")], ids=["disk", "any"]
)
def test_a_picture_that_fails_is_a_line_and_no_verdict(short, monkeypatch, data, error):
    from apr.train import pretrain, run

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(run, "plot_losses", failing)
    out, contract = io.StringIO(), data.parents[1] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"
    config = short(contract=contract)
    result = pretrain(config, out=out)
    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0)
    assert result.contract["falsifiers"]
    assert json.loads((config.run_dir / "result.json").read_text())["contract"]["falsifiers"]
    lines = out.getvalue().splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: no loss.png: ")]
    assert warning.endswith(("No space left on device", "one two"))
    assert lines.index(warning) < lines.index(f"BUDGET_SPENT: {result.detail}")


def test_lines_come_at_a_steady_rhythm_and_at_the_end_of_an_epoch(monkeypatch):
    from apr.train.record import report

    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    said = report.Report(out)
    for step in range(1, 41):
        now[0] += 3
        said.progress(f"step {step}", step, 40, due=step % 25 == 0)
    lines = [int(line.removeprefix("step ")) for line in out.getvalue().splitlines()]
    assert lines == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]


def test_a_terminal_gets_the_lines_and_a_bar(tmp_path):
    from apr.train.record.report import Report

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Report(out) as said:
        said.keep(tmp_path / "run.log")
        said.progress("step 1/2", 1, 2, due=True)
        said.progress("step 2/2", 2, 2)
        said.line("done")
    assert "\x1b[" in out.getvalue()
    assert "step 2/2" in out.getvalue()
    assert (tmp_path / "run.log").read_text() == "step 1/2\ndone\n"


def test_tensorboard_has_the_scalars(short, train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = short(tensorboard=True)
    result = train(config)
    events = EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    losses = events.Scalars("held_out/val_loss")
    assert [e.step for e in losses] == [0, 2, 3]
    assert losses[-1].value == pytest.approx(result.final_val_loss, rel=1e-6)
    assert [e.step for e in events.Scalars("train/train_loss")] == [0, 1, 2]


def test_tensorboard_keeps_the_held_out_point_where_a_run_goes_on(short, train):
    pytest.importorskip("tensorboard")
    from dataclasses import replace

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = short(tensorboard=True)
    first = train(config)
    train(replace(config, num_steps=5, resume=True, extend=True))
    events = EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    losses = {e.step: e.value for e in events.Scalars("held_out/val_loss")}
    assert losses.keys() == {0, 2, 3, 4, 5}
    assert losses[3] == pytest.approx(first.final_val_loss, rel=1e-6)


def test_a_gpu_that_does_not_measure_its_utilization_is_refused_before_the_run(monkeypatch):
    from types import SimpleNamespace

    import torch

    from apr.errors import UnavailableError
    from apr.train.machine import device

    class NVMLError(Exception):
        pass

    def unsupported(_):
        raise NVMLError("Not Supported")

    driver = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(device, "_uuid", lambda _: "GPU-0")
    with pytest.raises(UnavailableError, match="cannot be measured"):
        device.Utilization(torch.device("cuda"))


def test_tensorboard_that_is_missing_is_said_before_the_run(short, monkeypatch, tmp_path):
    from apr.errors import UnavailableError
    from apr.train import pretrain
    from apr.train.record import tensorboard

    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"apr\[tensorboard\]") as error:
        pretrain(short(tensorboard=True))
    assert error.value.exit_code == 9
    assert not (tmp_path / "run").exists()

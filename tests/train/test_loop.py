"""The loop: bad numbers, spikes, the end of the stream, signals, and the same bytes after a resume."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.train import children
from tests.train.conftest import checkpoints, gate, left_by, records, step_records

SIGNALS = [
    (signal.SIGTERM, 143),
    (signal.SIGINT, 130),
    (signal.SIGHUP, 129),
    (signal.SIGUSR1, 138),
    (signal.SIGUSR2, 140),
    (signal.SIGXCPU, 152),
]


def test_a_loss_of_nan_ends_the_run_before_the_update(options, train, train_until, monkeypatch, tmp_path):
    """The checkpoint has the state before it, with the bytes of a run that was stopped there."""
    from apr.train import step

    before = options(run_dir=tmp_path / "stopped")
    assert train_until(before, 4).last_checkpoint == "ckpt/step-00000005.apr"
    add_gradients = step.add_gradients

    def broken(*arguments, **keywords):
        out = add_gradients(*arguments, **keywords)
        return out * float("nan") if calls.append(1) or len(calls) > 5 else out

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(step, "add_gradients", broken)
        result = train(options())
    assert (result.status, result.exit_code) == ("NUMERICAL_INSTABILITY", 5)
    assert not gate(result, "numerics").passed
    assert result.steps_completed == 5
    last = records(tmp_path / "run")[-1]
    assert last["train_loss"] is None
    assert len(last["windows"]) == 4
    assert ", ".join(map(str, last["windows"])) in result.detail
    assert result.last_checkpoint == "ckpt/step-00000005.apr"
    saved, expected = (run / result.last_checkpoint for run in (tmp_path / "run", before.run_dir))
    assert saved.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(("rate", "status"), [(1e30, "NUMERICAL_INSTABILITY"), (1e3, "DIVERGENCE")])
def test_exploded_weights_are_not_resumed_from(options, train, monkeypatch, tmp_path, rate, status):
    """The good checkpoint before stays the last one, and --resume uses it."""
    from apr.train import loop

    usual = loop.learning_rate
    with monkeypatch.context() as patched:
        patched.setattr(loop, "learning_rate", lambda step, **k: rate if step == 7 else usual(step, **k))
        result = train(options())
    assert (result.status, result.exit_code) == (status, 5)
    if status == "NUMERICAL_INSTABILITY":
        assert result.last_checkpoint == "ckpt/epoch-000.apr"
        assert "unusable" in result.detail
        assert not list((tmp_path / "run" / "ckpt").glob("step-*"))
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", "ckpt/epoch-000.apr")
    log = (tmp_path / "run" / "run.log").read_text()
    assert ("run that diverged" in log) == (status == "DIVERGENCE")


def test_a_held_out_loss_of_nan_ends_the_run_and_keeps_what_was_trained(
    options, train, monkeypatch, tmp_path
):
    from apr.train import loop

    evaluate = loop.evaluate
    for n, (losses, saved) in enumerate(
        (([float("nan")], None), ([5.0, float("nan")], "ckpt/step-00000006.apr"))
    ):
        left = iter(losses)
        with monkeypatch.context() as patched:
            patched.setattr(
                loop, "evaluate", lambda *a, left=left, **k: replace(evaluate(*a, **k), val_loss=next(left))
            )
            config = options(run_dir=tmp_path / str(n))
            result = train(config)
        assert (result.status, result.exit_code) == ("NUMERICAL_INSTABILITY", 5)
        assert "held-out loss is nan" in result.detail
        assert not gate(result, "numerics").passed
        assert result.last_checkpoint == saved
        resumed = train(replace(config, resume=True))
        assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", saved)


def test_disagreeing_losses_are_refused_before_the_first_update(options, train, monkeypatch):
    from apr.train import loop

    losses = loop.token_losses
    monkeypatch.setattr(loop, "token_losses", lambda model, ids: losses(model, ids) * 1.01)
    result = train(options())
    assert (result.status, result.exit_code, result.steps_completed) == ("REFUSED", 5, 0)
    assert not gate(result, "train_eval_agree").passed


def test_a_stream_that_starts_over_is_reported(options, train, make_shards, tmp_path):
    config = options(dataset=make_shards(tokens=1500), allow_shard_cycle=True)
    result = train(config)
    assert result.steps_completed == 12
    # 1500 ids: the last 5 of 46 windows are held out; the 1312 before make 40; 48 are visited.
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("starting epoch 2: another pass over the 40 training windows") == 1


def test_a_stream_that_ends_ends_the_run(options, train, make_shards, monkeypatch):
    """The preflight counts windows. This is what happens if it ever counts wrongly."""
    from apr.train import run

    prepare = run.prepare

    def miscounting(config, world):
        prepared = prepare(replace(config, allow_shard_cycle=True), world)
        return replace(prepared, config=replace(prepared.config, allow_shard_cycle=False))

    monkeypatch.setattr(run, "prepare", miscounting)
    result = train(options(dataset=make_shards(tokens=1500)))
    assert (result.status, result.exit_code) == ("STREAM_EXHAUSTED", 5)
    assert result.steps_completed == 10
    assert not gate(result, "exhaustion").passed


def test_a_resumed_process_compares_the_losses_again(options, train, train_until, monkeypatch):
    from apr.train import loop

    train_until(options(), 3)
    losses = loop.token_losses
    monkeypatch.setattr(loop, "token_losses", lambda model, ids: losses(model, ids) * 1.01)
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.exit_code, resumed.steps_completed) == ("REFUSED", 5, 4)


def test_wall_seconds_are_one_clock_over_all_parts(options, train, monkeypatch, tmp_path):
    """The clock starts at the call, includes what comes before the first record, and never goes back."""
    from types import SimpleNamespace

    from apr.train import run
    from apr.train.record import recorder

    now = [0.0]

    def ticking():
        now[0] += 1
        return now[0]

    for module in (recorder, run):
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic=ticking, perf_counter=module.time.perf_counter)
        )
    prepare = run.prepare

    def slowly(config, world):
        now[0] += 100
        return prepare(config, world)

    monkeypatch.setattr(run, "prepare", slowly)
    parts = [{"num_steps": 4}] + [{"resume": True, "extend": True, "num_steps": n} for n in (5, 6)]
    ends = [train(options(**part)).wall_seconds for part in parts]
    walls = [record["wall_seconds"] for record in records(tmp_path / "run")]
    assert 100 < walls[0] < walls[4] < ends[0] < walls[-1] < ends[-1]
    assert [b - a > 100 for a, b in zip([0, *ends], ends, strict=False)] == [True] * 3
    train(options(resume=True, extend=True, num_steps=7))
    walls = [record["wall_seconds"] for record in records(tmp_path / "run")]
    assert walls == sorted(walls)
    assert walls[-1] > ends[-1]


def test_the_weights_are_exported_in_bfloat16(options, train, tmp_path):
    import torch

    import apr
    from apr.train.file_evaluation import evaluate_file

    result = train(options(save_dtype="bf16"))
    assert result.export == "final.apr"
    log = (tmp_path / "run" / "run.log").read_text()
    assert str(tmp_path / "run" / "final.apr") in log
    weights = apr.load(tmp_path / "run" / "final.apr")
    last = apr.load(tmp_path / "run" / result.last_checkpoint)
    names = {name for name in last if not name.startswith("__training__")}
    assert set(weights) == names
    assert all(torch.equal(weights[name], last[name].bfloat16()) for name in names)
    loss = evaluate_file(tmp_path / "run" / "final.apr", tmp_path / "shards", device="cpu")[0].val_loss
    assert loss == pytest.approx(result.final_val_loss, rel=1e-2)
    first = train(options(init=tmp_path / "run" / "final.apr", run_dir=tmp_path / "next"))
    assert first.initial_val_loss == pytest.approx(loss, abs=1e-6)


@pytest.fixture
def jump(monkeypatch):
    """Count the loss of one step four times; four steps before it are enough to tell a spike."""

    def arm(at):
        from apr.train import step
        from apr.train.checkpoint import state

        monkeypatch.setattr(state, "_SPIKE_WINDOW", 4)
        add_gradients, calls = step.add_gradients, []

        def jumping(*arguments, **keywords):
            calls.append(1)
            return add_gradients(*arguments, **keywords) * (4 if len(calls) == at + 1 else 1)

        monkeypatch.setattr(step, "add_gradients", jumping)

    return arm


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_reported_and_skipped_on_request(options, train, jump, skip):
    import apr

    jump(at=7)
    config = options(num_steps=9, eval_every=3, skip_spikes=skip, keep=9, lr=1e-4)
    result = train(config)
    assert (result.status, result.spikes, result.skipped_steps) == ("BUDGET_SPENT", 1, int(skip))
    assert result.tokens_seen == 9 * config.tokens_per_step
    assert [r["spike"] for r in step_records(config.run_dir)] == [n == 7 for n in range(9)]
    assert [r["updated"] for r in step_records(config.run_dir)] == [not (skip and n == 7) for n in range(9)]
    line = next(text for text in (config.run_dir / "run.log").read_text().splitlines() if "spike at" in text)
    assert "spike at step 7" in line
    assert ("not updated" in line) == skip
    last = apr.load(config.run_dir / result.last_checkpoint)
    assert last["__training__.optimizer.step"].item() == 9 - skip
    assert last.metadata["training"]["state"]["step"] == 9


def test_a_skipped_step_leaves_the_weights_alone(options, train, jump):
    import torch

    import apr

    jump(at=7)
    config = options(num_steps=8, eval_every=1, skip_spikes=True, keep=9, lr=1e-4)
    train(config)
    before, after = (apr.load(config.run_dir / "ckpt" / f"epoch-{n:03}.apr") for n in (6, 7))
    assert all(torch.equal(before[name], after[name]) for name in before if "scheduler" not in name
               and "meta" not in name)  # fmt: skip
    assert not torch.equal(
        before["model.norm.weight"], apr.load(config.run_dir / "ckpt/epoch-005.apr")["model.norm.weight"]
    )


def test_a_resumed_run_knows_the_losses_before_it(options, train, jump, train_until, monkeypatch, tmp_path):
    """A run stopped after a skipped step ends with the bytes of a run that was not stopped."""
    with monkeypatch.context():
        jump(at=5)
        alone = options(run_dir=tmp_path / "alone", num_steps=9, eval_every=9, skip_spikes=True, lr=1e-4)
        assert train(alone).skipped_steps == 1
    monkeypatch.undo()
    jump(at=5)
    config = options(num_steps=9, eval_every=9, skip_spikes=True, lr=1e-4)
    assert train_until(config, 6).status == "INTERRUPTED"
    assert (
        train(options(num_steps=9, eval_every=9, skip_spikes=True, lr=1e-4, resume=True)).skipped_steps == 1
    )
    name = "ckpt/epoch-000.apr"
    assert (config.run_dir / name).read_bytes() == (alone.run_dir / name).read_bytes()


@pytest.mark.parametrize(("number", "exit_code"), SIGNALS[:2])
@pytest.mark.parametrize("step", [3, 5, 7], ids=["between-evaluations", "before-one", "after-one"])
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
    lines = [[{key: r.get(key) for key in kept} for r in records(d)] for d in (run, alone.run_dir)]
    assert lines[0] == lines[1]


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
def test_a_signal_within_an_evaluation_keeps_what_was_trained(
    options, train, make_shards, tmp_path, number, exit_code, evaluation, saved
):
    """The evaluation is dropped, and made again after a resume; the steps are not."""
    # Two groups of windows: the signal comes between them.
    more = {"dataset": make_shards(tokens=30_000), "val_tokens": 3_000}
    alone, config = options(run_dir=tmp_path / "alone", **more), options(**more)
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


@pytest.mark.parametrize(("number", "exit_code"), SIGNALS)
def test_every_signal_that_announces_an_end_saves_the_run(options, train_until, number, exit_code):
    stopped = train_until(options(), 3, number)
    assert (stopped.status, stopped.exit_code) == ("INTERRUPTED", exit_code)
    assert stopped.last_checkpoint == "ckpt/step-00000004.apr"
    assert signal.Signals(number).name in stopped.detail


@pytest.mark.parametrize(("number", "exit_code"), SIGNALS[2:])
def test_repeated_warnings_wait_for_the_checkpoint(options, train, number, exit_code, monkeypatch):
    """The kernel sends SIGXCPU every second; a second SIGTERM ends the run at once."""
    from apr.train.checkpoint import saver
    from apr.train.record.metrics import MetricsFile

    write, snapshot = MetricsFile.write, saver.snapshot

    def writing(self, record):
        write(self, record)
        if record["step"] == 3 and "train_loss" in record:
            os.kill(os.getpid(), number)

    def saving(*arguments):
        for again in (number, signal.SIGTERM, number):
            os.kill(os.getpid(), again)
        return snapshot(*arguments)

    monkeypatch.setattr(MetricsFile, "write", writing)
    monkeypatch.setattr(saver, "snapshot", saving)
    stopped = train(options())
    assert (stopped.status, stopped.exit_code) == ("INTERRUPTED", exit_code)
    assert stopped.last_checkpoint == "ckpt/step-00000004.apr"


@pytest.mark.parametrize("number", [number for number, _ in SIGNALS[2:]])
def test_a_warning_that_is_ignored_stays_ignored(options, train_until, number):
    """As under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert train_until(options(num_steps=5), 3, number).status == "BUDGET_SPENT"
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_whose_terminal_is_lost_saves(options, flags, tmp_path):
    """As when an ssh connection breaks: the kernel sends SIGHUP, and each line that is printed fails."""
    program = (
        "import sys; from tests.train.children import lose_the_terminal; lose_the_terminal(sys.argv[1:])"
    )
    arguments = ["pretrain", *flags(options())]
    child = subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True)
    assert child.returncode == 129, child
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("INTERRUPTED", 129)
    assert result["last_checkpoint"] == "ckpt/step-00000004.apr"

"""Resuming: damaged checkpoints, options that are kept, records that are cut back."""

import io
import json

import pytest
from tests.train.conftest import checkpoints, flipped, gate, step_records


def test_a_resumed_run_keeps_its_precision_and_reports_its_own_speed(options, train, monkeypatch):
    """Also on a device with another default precision. The speed of an earlier device does not count."""
    import yaml

    from apr.train.start import needs

    config = options(num_steps=6)
    train(config)
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text())["precision"] == "fp32"
    metrics = config.run_dir / "train.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {line["device"] for line in lines if "train_loss" in line} == {"cpu"}
    for line in lines:
        if "train_loss" in line:
            line.update(tokens_per_sec=1e12, mfu=0.5)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(needs, "default_precision", lambda _: "bf16")
    resumed = train(options(num_steps=9, resume=True, extend=True))
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text())["precision"] == "fp32"
    assert 0 < resumed.tokens_per_second < 1e11
    assert resumed.mfu is None


def test_a_run_resumed_with_activation_checkpointing_ends_in_the_same_bytes(
    options, train, train_until, tmp_path
):
    train(options(run_dir=tmp_path / "alone", grad_accum=2))
    train_until(options(grad_accum=2), 7)
    assert train(options(grad_accum=2, resume=True, activation_checkpointing=True)).steps_completed == 12
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")


@pytest.mark.parametrize("num_steps", [14, 15])
def test_extend_continues_a_partial_epoch(options, train, tmp_path, num_steps):
    train(options(eval_every=5))
    further = train(options(eval_every=5, resume=True, extend=True, num_steps=num_steps))
    assert (further.status, further.steps_completed, further.epochs_completed) == (
        "BUDGET_SPENT",
        num_steps,
        4,
    )
    assert further.last_checkpoint == "ckpt/epoch-003.apr"
    assert further.final_val_loss == further.val_loss_history[-1]
    records = list(map(json.loads, (tmp_path / "run" / "train.jsonl").open()))
    assert [r["step"] for r in records if "val_loss" in r] == [0, 5, 10, 12, num_steps]
    assert all(gate.passed for gate in further.gates if gate.name in {"metrics", "artefacts"})


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:1000], lambda _: b""],
                         ids=["bit", "torn", "empty"])  # fmt: skip
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(options, train, tmp_path, damage):
    run = tmp_path / "run"
    first = train(options())
    expected = checkpoints(run)
    path = run / first.last_checkpoint
    path.write_bytes(damage(path.read_bytes()))
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", "ckpt/epoch-000.apr")
    assert checkpoints(run) == expected
    log = (run / "run.log").read_text()
    assert log.count("epoch-001.apr.damaged") == 1
    assert (run / "ckpt" / "epoch-001.apr.damaged").exists()
    steps = [r["step"] for r in map(json.loads, (run / "train.jsonl").open()) if "train_loss" in r]
    assert steps == list(range(12))


def test_a_damaged_best_checkpoint_is_set_aside(options, train, monkeypatch, tmp_path):
    from dataclasses import replace

    from apr.train import loop

    evaluate, losses = loop.evaluate, iter([5.0, 4.0, 4.1, 4.2])
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: replace(evaluate(*a, **k), val_loss=next(losses)))
    assert train(options()).best_checkpoint == "ckpt/epoch-000.apr"
    ckpt = tmp_path / "run" / "ckpt"
    (ckpt / "epoch-000.apr").write_bytes(flipped((ckpt / "epoch-000.apr").read_bytes()))
    resumed = train(options(resume=True, extend=True, num_steps=18, keep=1))
    assert (resumed.resumed_from, resumed.best_checkpoint) == ("ckpt/epoch-001.apr", "ckpt/epoch-001.apr")
    assert {path.name for path in ckpt.glob("*.apr*")} == {
        "epoch-000.apr.damaged",
        "epoch-001.apr",
        "epoch-002.apr",
    }
    assert json.loads((ckpt / "epoch-000.metadata.json").read_text())["damaged"] is True
    assert (resumed.status, resumed.exit_code) == ("FAILED", 5)
    assert "epoch-000.apr damaged" in resumed.detail
    artifacts = gate(resumed, "artefacts")
    assert (artifacts.passed, artifacts.value) == (False, "epoch-000.apr damaged")
    assert "best model: " in (log := (tmp_path / "run" / "run.log").read_text())
    assert "epoch-001.apr, held-out loss 4.1000" in log


@pytest.mark.parametrize("line", [b"\xff\xfe", b"{}", b"[1]", b"garbage"])
def test_invalid_records_are_refused_and_nothing_is_moved(options, train, tmp_path, line):
    from apr.errors import RefusedError

    train(options())
    run = tmp_path / "run"
    metrics = (run / "train.jsonl").read_bytes()
    (run / "train.jsonl").write_bytes(line + b"\n" + metrics)
    before = {path.name for path in run.iterdir()}
    with pytest.raises(RefusedError, match=r"train\.jsonl: line 1 "):
        train(options(resume=True))
    assert {path.name for path in run.iterdir()} == before
    (run / "train.jsonl").write_bytes(metrics + line)  # cut off
    assert train(options(resume=True)).status == "BUDGET_SPENT"


def test_when_no_checkpoint_verifies_all_are_named(options, train, tmp_path):
    from apr.errors import RefusedError

    train(options())
    for path in (tmp_path / "run" / "ckpt").glob("*.apr"):
        path.write_bytes(flipped(path.read_bytes()))
    metrics = (tmp_path / "run" / "train.jsonl").read_bytes()
    with pytest.raises(RefusedError, match=r"epoch-001\.apr.*epoch-000\.apr"):
        train(options(resume=True))
    assert (tmp_path / "run" / "train.jsonl").read_bytes() == metrics


def test_resume_needs_no_other_flag(options, train_until, tmp_path, capsys):
    from apr.cli import main

    train_until(options(), 3)
    assert main(["pretrain", "--run-dir", str(tmp_path / "run"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps_completed"] == 12


@pytest.mark.parametrize(
    "change",
    [
        {"seq_length": 16},
        {"lr": 1e-4},
        {"seed": 1},
        {"num_steps": 20},
        {"num_steps": 11},
        {"num_steps": 11, "shorten": True},
    ],
)
def test_a_resumed_run_keeps_its_options(options, train, change):
    from apr.errors import RefusedError

    train(options())
    with pytest.raises(RefusedError, match=next(iter(change)).replace("_", "-")):
        train(options(resume=True, **change))


def test_windows_of_a_step_may_be_split_differently(options, train, train_until):
    from apr.errors import RefusedError

    stopped = train_until(options(batch_size=4), 3)
    with pytest.raises(RefusedError, match="--grad-accum"):
        train(options(resume=True, batch_size=2, grad_accum=3))
    resumed = train(options(resume=True, batch_size=2, grad_accum=2))
    assert (resumed.status, resumed.steps_completed) == ("BUDGET_SPENT", 12)
    agreed = next(gate for gate in resumed.gates if gate.name == "train_eval_agree")
    before = next(gate for gate in stopped.gates if gate.name == "train_eval_agree")
    assert agreed.value >= before.value


def everything_in(run):
    """Return the bytes of all files of a run, and what would tell that one was written again."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


ENDS = {
    "BUDGET_SPENT": {},
    "TARGET_MET": {"target_val_loss": 100.0},
    "EARLY_STOP": {"lr": 1e-30, "eval_every": 2, "patience": 2, "min_evaluations": 1},
}


@pytest.mark.parametrize("status", ENDS)
@pytest.mark.parametrize("how", ["the same options", "no other flag", "another device and --keep"])
def test_resuming_a_finished_run_changes_no_file(options, train, tmp_path, capsys, status, how):
    from apr.cli import main
    from apr.train import pretrain

    first = train(options(**ENDS[status]))
    assert first.status == status
    before = everything_in(tmp_path / "run")
    if how == "no other flag":
        assert main(["pretrain", "--run-dir", str(tmp_path / "run"), "--resume", "--json"]) == 0
        printed, said = capsys.readouterr()
        assert json.loads(printed) == {"event": "result"} | json.loads(json.dumps(first.to_dict()))
    else:
        more = {"keep": 5, "max_minutes": 9.0} if how != "the same options" else {}
        out = io.StringIO()
        assert pretrain(options(**ENDS[status], **more, resume=True), out=out) == first
        said = out.getvalue()
    assert f"the run is finished ({status}: " in said
    assert said.count("\n") == 1
    assert everything_in(tmp_path / "run") == before


@pytest.mark.parametrize("status", ["TARGET_MET", "EARLY_STOP"])
@pytest.mark.parametrize("change", [{"extend": True, "num_steps": 30}, {"shorten": True, "num_steps": 6}])
def test_a_finished_run_that_a_gate_ended_is_not_trained_on_by_another_number_of_steps(
    options, train, tmp_path, status, change
):
    """It would end again at once, so that no file changes, and the advice names the option that helps."""
    from apr.train import pretrain

    ends = ENDS[status] | {"eval_every": 3, "num_steps": 12}
    first = train(options(**ends))
    assert (first.status, first.steps_completed < 12) == (status, True)
    before, out = everything_in(tmp_path / "run"), io.StringIO()
    if change["num_steps"] < first.steps_completed:
        change = change | {"num_steps": first.steps_completed}
    assert pretrain(options(**ends | change, resume=True), out=out) == first
    assert everything_in(tmp_path / "run") == before
    helps = {"TARGET_MET": {"stop_at_target": False}, "EARLY_STOP": {"patience": 50}}[status]
    assert {"TARGET_MET": "--no-stop-at-target", "EARLY_STOP": "--patience"}[status] in out.getvalue()
    assert "--extend" not in out.getvalue()
    assert train(options(**ends | helps, resume=True)).steps_completed == 12


def test_a_finished_run_of_all_its_steps_names_extend(options, train):
    from apr.train import pretrain

    train(options())
    out = io.StringIO()
    pretrain(options(resume=True), out=out)
    assert "--extend with more than --num-steps 12" in out.getvalue()


@pytest.mark.parametrize("missing", ["init", "tokenizer", "arch"])
def test_a_new_path_that_does_not_exist_is_refused(options, train, tmp_path, missing):
    """A file that is gone may be missing. One that is named only now was mistyped."""
    start = {"mode": "from-scratch", "init": None, "arch": "qwen2-4m"} if missing == "arch" else {}
    train(options(**start, num_steps=2, eval_every=1))
    before = everything_in(tmp_path / "run")
    path = tmp_path / "mistyped"
    value = str(path) if missing == "arch" else path
    with pytest.raises(FileNotFoundError, match=f"--{missing}") as caught:
        train(options(**start | {missing: value}, num_steps=2, eval_every=1, resume=True))
    assert caught.value.filename == str(path)
    assert everything_in(tmp_path / "run") == before


def test_what_a_resumed_run_keeps_is_not_called_asked_for(options, train_until):
    """The default of the first part is in config.yaml as if it had been passed."""
    from apr.train import plan

    train_until(options(), 3)
    lines = str(plan(options(resume=True))).splitlines()
    (compiles,) = [line for line in lines if line.startswith("compile: ")]
    assert compiles.startswith("compile: off")
    assert "asked" not in compiles


def test_a_finished_run_that_lacks_something_is_completed(options, train, tmp_path):
    train(options())
    (tmp_path / "run" / "result.json").unlink()
    assert train(options(resume=True)).resumed_from == "ckpt/epoch-001.apr"
    assert train(options(resume=True, save_dtype="bf16")).export == "final.apr"
    assert (tmp_path / "run" / "final.apr").exists()


@pytest.mark.parametrize(("stop", "steps"), [(3, 4), (3, 6), (3, 8), (6, 7), (7, 11)])
def test_a_shortened_run_has_the_rates_of_its_new_length(options, train, train_until, tmp_path, stop, steps):
    """What was done stays; each later step has the rate of a run that was that short from the start."""
    train(options(run_dir=tmp_path / "short", num_steps=steps, warmup_steps=1))
    assert train_until(options(), stop).steps_completed == stop + 1
    run = tmp_path / "run"
    result = train(options(resume=True, shorten=True, num_steps=steps))
    assert (result.status, result.steps_completed) == ("BUDGET_SPENT", steps)
    assert result.final_val_loss == result.val_loss_history[-1]
    assert all(gate.passed for gate in result.gates if gate.name in {"metrics", "artefacts"})
    rates, short = ([r["lr"] for r in step_records(d)] for d in (run, tmp_path / "short"))
    assert rates[stop + 1 :] == short[stop + 1 :]
    assert f"steps: {steps} instead of 12" in (run / "run.log").read_text()
    assert train(options(resume=True, num_steps=steps)).steps_completed == steps


def test_a_shortened_run_may_end_in_its_warmup_or_at_once(options, train, train_until, tmp_path):
    long = {"num_steps": 20, "warmup_steps": 10}
    assert train_until(options(**long), 3).steps_completed == 4
    result = train(options(resume=True, shorten=True, num_steps=4, warmup_steps=10))
    assert (result.status, result.steps_completed, result.epochs_completed) == ("BUDGET_SPENT", 4, 1)
    again = train(options(resume=True, extend=True, num_steps=6, warmup_steps=10))
    assert [r["lr"] for r in step_records(tmp_path / "run")] == pytest.approx([2e-4 * n for n in range(1, 7)])
    assert again.steps_completed == 6


def test_a_run_of_an_older_version_is_resumed_without_its_default_target(options, train, tmp_path):
    """It once stopped at a target that nobody had asked for."""
    from tests.train.test_rundir import as_an_older_version_wrote

    first = train(options(target_val_loss=100.0))
    assert (first.status, first.steps_completed) == ("TARGET_MET", 6)
    run = tmp_path / "run"
    as_an_older_version_wrote(run)
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.steps_completed) == ("BUDGET_SPENT", 12)
    assert "2.2 was the default" in (run / "run.log").read_text()

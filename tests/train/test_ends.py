"""What ends a run, with which status and sentence."""

import pytest
from tests.train.conftest import gate


def test_a_diverged_first_epoch_ends_the_run(options, train, monkeypatch):
    from apr.train import gates

    monkeypatch.setattr(gates, "first_cap", lambda *_: 0.5)
    result = train(options())
    assert (result.status, result.exit_code, result.epochs_completed) == ("DIVERGENCE", 5, 1)
    assert not gate(result, "divergence").passed


@pytest.mark.parametrize(("patience", "words"), [(1, "in 1 evaluation;"), (2, "in 2 evaluations;")])
def test_patience_ends_the_run(options, train, patience, words):
    result = train(options(lr=1e-30, num_steps=12, eval_every=2, patience=patience, min_evaluations=1))
    assert (result.status, result.exit_code) == ("EARLY_STOP", 0)
    assert not gate(result, "patience").passed
    assert result.epochs_completed == patience + 1
    assert words in result.detail


def test_a_target_that_is_met_stops_the_run(options, train, tmp_path):
    result = train(options(target_val_loss=100.0))
    assert (result.status, result.exit_code, result.steps_completed) == ("TARGET_MET", 0, 6)
    result = train(options(target_val_loss=100.0, stop_at_target=False, run_dir=tmp_path / "on"))
    assert (result.status, result.steps_completed) == ("TARGET_MET", 12)


def test_a_missed_target_is_neither_failure_nor_success(options, train):
    result = train(options(target_val_loss=0.001))
    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0)
    assert "not met" in result.detail
    assert "onverged" not in result.detail


def test_what_ended_a_run_ends_it_again_when_it_is_resumed(options, train, monkeypatch, tmp_path):
    from apr.train import gates

    with monkeypatch.context() as patched:
        patched.setattr(gates, "first_cap", lambda *_: 0.5)
        ends = [train(options(resume=resume)) for resume in (False, True)]
    assert [(e.status, e.exit_code, e.steps_completed) for e in ends] == [("DIVERGENCE", 5, 6)] * 2

    run = {"run_dir": tmp_path / "patient", "lr": 1e-30, "eval_every": 2, "patience": 2, "min_evaluations": 1}
    ends = [train(options(**run, resume=resume)) for resume in (False, True)]
    assert [(e.status, e.steps_completed) for e in ends] == [("EARLY_STOP", 6)] * 2
    assert train(options(**run | {"patience": 9}, resume=True)).steps_completed == 12


def test_a_run_that_met_its_target_can_be_continued(options, train):
    met = {"target_val_loss": 100.0}
    ends = [train(options(**met, resume=resume)) for resume in (False, True)]
    assert [(e.status, e.steps_completed) for e in ends] == [("TARGET_MET", 6)] * 2
    on = train(options(**met, resume=True, stop_at_target=False, extend=True, num_steps=14))
    assert (on.status, on.steps_completed) == ("TARGET_MET", 14)


def test_without_a_target_a_run_spends_its_budget(options, train):
    result = train(options())
    assert (result.status, result.target_met_before_training) == ("BUDGET_SPENT", None)
    assert gate(result, "target").passed is None
    assert "target" not in result.detail
    assert f"({result.initial_val_loss:.4f} to {result.final_val_loss:.4f}) in 12 steps" in result.detail


@pytest.mark.parametrize(
    ("initial", "final", "words"),
    [
        (2.0576, 1.9826, "improved by 0.075 (2.0576 to 1.9826) in 12 steps"),
        (2.0576, 2.5, "worsened by 0.4424 "),
        (2.0, 2.0, "did not change (2.0000)"),
        (None, 2.0, "not measured"),
    ],
)
def test_the_sentence_says_whether_the_loss_improved(options, initial, final, words):
    from apr.train.checkpoint.state import RunState
    from apr.train.ends import budget_spent, met_before_training

    config = options().resolved("fp32", compiled=False)
    state = RunState(step=12, evaluated_step=12, initial_val_loss=initial, val_loss_history=[final])
    ended = budget_spent(config, state)
    assert (ended.status, ended.exit_code) == ("BUDGET_SPENT", 0)
    assert words in ended.detail
    assert "target" not in ended.detail
    assert met_before_training(config, state) is None


def test_a_target_met_before_training_is_reported_as_that(options, train):
    result = train(options(target_val_loss=100.0))
    assert result.target_met_before_training is True
    assert "target 100 was already met before training" in result.detail
    assert f"({result.initial_val_loss:.4f} to {result.final_val_loss:.4f})" in result.detail


@pytest.mark.parametrize(
    ("initial", "final", "status", "words"),
    [
        (2.0576, 1.9826, "TARGET_MET", "already met before training; held-out loss improved by 0.075 "),
        (2.0576, 2.5, "BUDGET_SPENT", "no longer met; held-out loss worsened by 0.4424 "),
        (2.5, 2.1, "TARGET_MET", "target 2.2 met"),
        (2.5, 2.3, "BUDGET_SPENT", "target 2.2 not met"),
    ],
)
def test_the_sentence_compares_the_target_with_the_loss_before_training(
    options, initial, final, status, words
):
    from apr.train.checkpoint.state import RunState
    from apr.train.ends import budget_spent, met_before_training

    config = options(target_val_loss=2.2).resolved("fp32", compiled=False)
    state = RunState(step=12, evaluated_step=12, initial_val_loss=initial, val_loss_history=[final])
    ended = budget_spent(config, state)
    assert (ended.status, ended.exit_code) == (status, 0)
    assert words in ended.detail
    assert met_before_training(config, state) == (initial <= 2.2)

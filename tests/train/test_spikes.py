"""A loss that jumps: named, skipped if asked, and the same after a resume."""

import json
import math
import statistics

import pytest

WINDOW = 100


def test_the_limit_is_six_sigma_over_the_last_hundred():
    from apr.train.checkpoint.state import RunState

    state = RunState()
    losses = [3 + math.sin(n) for n in range(150)]
    for n, loss in enumerate(losses):
        assert (state.loss_limit is None) == (n < WINDOW)
        state.add_step(loss, 1.0, 10)
    last = losses[-WINDOW:]
    assert state.loss_limit == pytest.approx(statistics.fmean(last) + 6 * statistics.pstdev(last), rel=1e-12)
    assert state.spikes == 0


def test_a_loss_that_stays_where_it_jumped_to_is_no_spike_for_long():
    from apr.train.checkpoint.state import RunState

    state = RunState()
    for n in range(WINDOW):
        state.add_step(2 + 0.01 * (n % 2), 1.0, 10)
    for _ in range(20):
        state.add_step(8.0, 1.0, 10)
    assert 1 <= state.spikes < 5


@pytest.fixture
def jump(monkeypatch):
    """In one step the loss is counted as four times what it is; four steps before it are enough to tell."""

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


def records(config):
    lines = map(json.loads, (config.run_dir / "train.jsonl").read_text().splitlines())
    return [r for r in lines if "train_loss" in r]


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_named_and_skipped_if_asked(options, train, jump, skip):
    import apr

    jump(at=7)
    config = options(num_steps=9, steps_per_epoch=3, skip_spikes=skip, keep=9, lr=1e-4)
    result = train(config)
    assert (result.status, result.spikes, result.skipped_steps) == ("BUDGET_SPENT", 1, int(skip))
    assert result.tokens_seen == 9 * config.tokens_per_step
    assert [r["spike"] for r in records(config)] == [n == 7 for n in range(9)]
    assert [r["updated"] for r in records(config)] == [not (skip and n == 7) for n in range(9)]
    line = next(text for text in (config.run_dir / "run.log").read_text().splitlines() if "spike at" in text)
    assert "spike at step 7" in line
    assert ("nothing was updated" in line) == skip
    last = apr.load(config.run_dir / result.last_checkpoint)
    assert last["__training__.optimizer.step"].item() == 9 - skip
    assert last.metadata["training"]["state"]["step"] == 9


def test_a_skipped_step_leaves_the_weights_alone(options, train, jump):
    import torch

    import apr

    jump(at=7)
    config = options(num_steps=8, steps_per_epoch=1, skip_spikes=True, keep=9, lr=1e-4)
    train(config)
    before, after = (apr.load(config.run_dir / "ckpt" / f"epoch-{n:03}.apr") for n in (6, 7))
    assert all(torch.equal(before[name], after[name]) for name in before if "scheduler" not in name
               and "meta" not in name)  # fmt: skip
    assert not torch.equal(
        before["model.norm.weight"], apr.load(config.run_dir / "ckpt/epoch-005.apr")["model.norm.weight"]
    )


def test_a_resumed_run_knows_the_steps_before(options, train, jump, train_until, monkeypatch, tmp_path):
    """Stopped between a skipped step and the end: the same bytes as a run that was left alone."""
    with monkeypatch.context():
        jump(at=5)
        alone = options(run_dir=tmp_path / "alone", num_steps=9, steps_per_epoch=9, skip_spikes=True, lr=1e-4)
        assert train(alone).skipped_steps == 1
    monkeypatch.undo()
    jump(at=5)
    config = options(num_steps=9, steps_per_epoch=9, skip_spikes=True, lr=1e-4)
    assert train_until(config, 6).status == "INTERRUPTED"
    assert (
        train(options(num_steps=9, steps_per_epoch=9, skip_spikes=True, lr=1e-4, resume=True)).skipped_steps
        == 1
    )
    name = "ckpt/epoch-000.apr"
    assert (config.run_dir / name).read_bytes() == (alone.run_dir / name).read_bytes()

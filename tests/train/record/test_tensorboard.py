"""Event files have the numbers of train.jsonl."""

import pytest


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


def test_tensorboard_keeps_the_evaluation_that_a_run_resumes_at(short, train):
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


def test_missing_tensorboard_is_refused_before_the_run(short, monkeypatch, tmp_path):
    from apr.errors import UnavailableError
    from apr.train import pretrain
    from apr.train.record import tensorboard

    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"apr\[tensorboard\]") as error:
        pretrain(short(tensorboard=True))
    assert error.value.exit_code == 9
    assert not (tmp_path / "run").exists()

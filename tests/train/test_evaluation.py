"""The held-out loss equals an independent computation, and nothing of it is trained on."""

import pytest
from tests.train.conftest import BASE
from tests.train.oracles import HELD_OUT_START, held_out_windows, transformers_loss


def test_the_held_out_loss_is_transformers_own(options, train):
    config = options()
    result = train(config)
    windows = held_out_windows(config.dataset, HELD_OUT_START)
    assert len(windows) == 20
    assert result.initial_val_loss == pytest.approx(transformers_loss(BASE, windows), abs=1e-5)
    last = config.run_dir / result.last_checkpoint
    assert result.final_val_loss == pytest.approx(transformers_loss(last, windows), abs=1e-5)


def test_a_val_dataset_is_held_out_whole(options, train, make_shards):
    held_out = make_shards("held-out", tokens=700, seed=5)
    result = train(options(val_dataset=held_out, num_steps=2, eval_every=2))
    windows = held_out_windows(held_out, 0)[:20]
    assert result.initial_val_loss == pytest.approx(transformers_loss(BASE, windows), abs=1e-5)


def test_losses_of_an_evaluation_are_summed_in_float64(monkeypatch):
    """Next to a loss of 2^24, float32 would drop each loss of 1."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from apr.train import evaluation

    class Windows:
        seq_length = 4

        def __len__(self):
            return 2

        def in_order(self, count, batch_size):
            return (np.zeros((batch_size, 5), np.int64) for _ in range(count))

    losses = torch.tensor([2.0**24, 1.0, 1.0, 1.0])
    monkeypatch.setattr(evaluation, "token_losses", lambda *_: losses)
    model = SimpleNamespace(head_weight=losses)
    result = evaluation.evaluate(model, Windows(), val_tokens=8, batch_size=1, precision="fp32")
    assert result.val_loss == (2**24 + 3) / 4
    assert result.val_tokens == 8

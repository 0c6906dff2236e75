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

        def batch(self, indices):
            return np.zeros((len(indices), 5), np.int64)

    losses = torch.tensor([2.0**24, 1.0, 1.0, 1.0] * 2)
    monkeypatch.setattr(evaluation, "token_losses", lambda *_: losses)
    model = SimpleNamespace(head_weight=losses)
    result = evaluation.evaluate(model, Windows(), val_tokens=8, precision="fp32")
    assert result.val_loss == (2**24 + 3) / 4
    assert result.val_tokens == 8


@pytest.mark.parametrize("seq_length", [16, 32, 100])
def test_the_batch_size_changes_no_bit_of_the_loss(options, train, make_shards, tmp_path, capsys, seq_length):
    """3 and 9 windows at a time once gave ...0562738 and ...0503999."""
    import json

    from apr.cli import main

    shards = make_shards(tokens=60_000)
    # More windows than one group, and a last group that is smaller.
    common = {"num_steps": 1, "seq_length": seq_length, "val_tokens": 5_000, "dataset": shards}
    runs = [
        train(options(**common, run_dir=tmp_path / str(size), batch_size=size, lr=1e-30)).initial_val_loss
        for size in (1, 3, 9)
    ]
    assert len(set(runs)) == 1
    losses = set()
    for size in (1, 2, 3, 9, 64):
        flags = ["--dataset", str(shards), "--seq-length", str(seq_length), "--val-tokens", "5000"]
        more = ["--held-out", "--device", "cpu", "--json", "--batch-size", str(size)]
        assert main(["evaluate", str(BASE), *flags, *more]) == 0
        losses.add(json.loads(capsys.readouterr().out)["val_loss"])
    assert losses == set(runs)


def test_an_evaluation_that_does_not_fit_is_refused_by_its_size(run, make_shards, monkeypatch):
    import torch

    from apr.train import evaluation

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    monkeypatch.setattr(evaluation, "token_losses", full)
    code, _, error = run("evaluate", BASE, "--dataset", make_shards(), "--seq-length", 32, "--device", "cpu")
    assert code == 5
    assert "64 windows of 32 tokens" in error
    assert "Traceback" not in error

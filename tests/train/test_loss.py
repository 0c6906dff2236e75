"""The loss and its gradients, against torch's own cross entropy."""

import pytest
from tests.train.conftest import BASE


def losses_and_gradients(device, make_losses):
    import torch

    from apr.model import Decoder

    model = Decoder.from_apr(BASE, device)
    ids = torch.randint(0, 512, (5, 41), generator=torch.Generator().manual_seed(0)).to(device)
    loss = make_losses(model, ids)
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def ours(model, ids):
    from apr.train.loss import add_gradients

    return add_gradients(model, ids, 200)


def torchs(model, ids):
    from torch.nn.functional import cross_entropy

    loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / 200
    loss.backward()
    return loss


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    check_chunks(monkeypatch, "cpu")


def check_chunks(monkeypatch, device):
    """Compare losses and gradients of several chunks with torch's, on a device."""
    import torch

    from apr.train import loss

    expected, reference = losses_and_gradients(device, torchs)
    # 200 tokens in one piece; in chunks of 64, the last one smaller.
    for rows in (200, 64):
        monkeypatch.setattr(loss, "rows_at_a_time", lambda *_, rows=rows: rows)
        loss_in_chunks, gradients = losses_and_gradients(device, ours)
        assert loss_in_chunks == pytest.approx(expected, rel=1e-6)
        for name, gradient in reference.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_gradients_of_micro_batches_add_up():
    import torch

    def in_two(model, ids):
        return ours(model, ids[:2]) + ours(model, ids[2:])

    expected, reference = losses_and_gradients("cpu", ours)
    total, gradients = losses_and_gradients("cpu", in_two)
    assert total == pytest.approx(expected, rel=1e-6)
    for name, gradient in reference.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_evaluation_losses_equal_torchs(monkeypatch):
    import torch

    from apr.model import Decoder
    from apr.train import loss

    model = Decoder.from_apr(BASE)
    ids = torch.randint(0, 512, (5, 41), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids[:, :-1]).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        monkeypatch.setattr(loss, "rows_at_a_time", lambda *_: 64)
        torch.testing.assert_close(loss.token_losses(model, ids), expected)

"""The loss in chunks is the loss in one piece."""

from tests.train.conftest import BASE


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    import torch

    from apr.model import Decoder
    from apr.train import loss

    model = Decoder.from_apr(BASE)
    ids = torch.randint(0, 512, (2, 25), generator=torch.Generator().manual_seed(0))
    whole = loss.token_losses(model, ids)
    monkeypatch.setattr(loss, "CHUNK", 16)
    chunked = loss.token_losses(model, ids)
    torch.testing.assert_close(chunked, whole)
    gradients = [torch.autograd.grad(x.mean(), list(model.parameters())) for x in (chunked, whole)]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-7, rtol=1e-4)

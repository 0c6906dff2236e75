"""The kernels of the fast step, against their plain versions; on a CPU in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("check", ["check_cross_entropy", "check_update"])
def test_kernels_equal_their_plain_versions(check):
    pytest.importorskip("triton")
    # In a process of its own: Triton decides when it is imported whether it interprets.
    code = f"from tests.train.test_kernels import {check}; {check}('cpu')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True
    )


def check_cross_entropy(device):
    """Compare losses and gradients of rows that do not fill a block, some with a probability near 1."""
    import torch

    from apr.train.kernels import cross_entropy_gradient
    from apr.train.loss import softmax

    generator = torch.Generator().manual_seed(0)
    for dtype, vocab in ((torch.bfloat16, 9001), (torch.float32, 512)):
        logits = (4 * torch.randn(6, vocab, generator=generator)).to(dtype)
        targets = torch.tensor([0, vocab - 1, 7, 300, 300, 5])
        logits[3, 300] = 40  # the loss is 0 in float32, and the gradient nearly
        logits[4, 300] = 12
        expected, probabilities = softmax(logits.double().float(), targets, 32)
        gradient = cross_entropy_gradient(logits := logits.to(device), targets.to(device), 32)
        torch.testing.assert_close(gradient.cpu(), -expected, rtol=1e-5, atol=1e-6)
        at_target = torch.expm1(expected)[:, None] / 32
        reference = probabilities.scatter(-1, targets[:, None], at_target).to(dtype)
        torch.testing.assert_close(
            logits.cpu(), reference, rtol=8e-3 if dtype == torch.bfloat16 else 1e-4, atol=1e-9
        )


def check_update(device):
    """Compare norm, weights and moments of some updates with torch's, on sizes that fill no block."""
    import torch

    from apr.train.kernels import UpdateKernels

    generator = torch.Generator().manual_seed(0)
    for shapes in (((70, 33), (5,), (4100,)), ((64, 64), (16,), (48, 100))):
        start = [torch.randn(shape, generator=generator) for shape in shapes]
        weights = [values.clone().to(device) for values in start]
        reference = [torch.nn.Parameter(values.clone()) for values in start]
        groups = [
            {"params": reference[:1], "weight_decay": 0.1},
            {"params": reference[1:], "weight_decay": 0.0},
        ]
        plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
        dtypes = [torch.float32, torch.bfloat16, torch.bfloat16]
        gradients = [torch.empty_like(w, dtype=dtype) for w, dtype in zip(weights, dtypes, strict=True)]
        copies = [w.bfloat16() for w in weights]
        kernels = UpdateKernels(weights, moments, gradients, copies, [0.1, 0.0, 0.0])
        step, lr = torch.zeros((), device=device), torch.full((), 1e-2, device=device)
        for turn in range(2):
            scale = torch.tensor(1.0 + turn)
            for mine, theirs in zip(gradients, reference, strict=True):
                mine.copy_(torch.randn(mine.shape, generator=generator))
                theirs.grad = mine.cpu().float() / scale
            norm = torch.nn.utils.get_total_norm([gradient.cpu().float() for gradient in gradients])
            torch.testing.assert_close(kernels.norm().cpu(), norm, rtol=1e-6, atol=0)
            common = {"step": step, "lr": lr, "scale": scale.to(device), "betas": (0.9, 0.95), "eps": 1e-8}
            before = [w.clone() for w in weights]
            kernels.update(skip=torch.ones((), device=device), **common)
            assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
            kernels.update(skip=torch.zeros((), device=device), **common)
            plain.step()
            assert step.item() == turn + 1
            for i, parameter in enumerate(reference):
                state = plain.state[parameter]
                torch.testing.assert_close(weights[i].cpu(), parameter.detach(), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(moments[i][0].cpu(), state["exp_avg"], rtol=1e-5, atol=1e-7)
                torch.testing.assert_close(moments[i][1].cpu(), state["exp_avg_sq"], rtol=1e-5, atol=1e-7)
                # The interpreter rounds toward zero.
                rounding = 0 if device == "cuda" else 8e-3
                torch.testing.assert_close(copies[i], weights[i].bfloat16(), rtol=rounding, atol=0)

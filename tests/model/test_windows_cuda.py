"""The fused kernel for windows and softcaps gives the logits and gradients of the CPU."""

import pytest
from tests.model.test_parity import distance
from tests.model.tiny import VOCABULARY, ours, transformers_model

pytestmark = pytest.mark.cuda
# Wide enough heads for the kernel, which needs at least 16 elements.
SIZES = {"head_dim": 32, "hidden_size": 64}


@pytest.mark.parametrize("family", ["mistral", "qwen3", "olmo3", "gemma2", "gemma3_text", "phi3"])
def test_a_fused_kernel_gives_the_logits_of_the_cpu(family):
    import torch

    sizes = {} if family == "phi3" else SIZES
    model = ours(transformers_model(family, **sizes)).eval()
    device = ours(transformers_model(family, **sizes)).eval().cuda()
    # More lengths than torch compiles kernels for one function before it gives up.
    for length in range(20, 44, 2):
        ids = torch.arange(length)[None] * 7 % VOCABULARY
        expected, actual = model(ids), device(ids.cuda())
        assert distance(actual.cpu(), expected) < 1e-4, length
        for output in (expected, actual):
            output.float().logsumexp(-1).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), device.parameters(), strict=True):
        if parameter.grad.norm() > 1e-4:
            assert distance(other.grad.cpu(), parameter.grad) < 1e-3, name


def test_long_windowed_inputs_hold_no_scores():
    import torch

    from apr.model.attention import attend, window_mask

    length, device = 16384, torch.device("cuda")
    q, k, v = (torch.randn(1, 4, length, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    attend(q, k, v, window_mask(512, 0, length, device), 0.125, None)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(q, k, v, window_mask(512, 0, length, device), 0.125, None)
    # The scores alone would take 2 GiB.
    assert torch.cuda.max_memory_allocated() - before < 100e6

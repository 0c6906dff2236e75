"""The fused kernel for windows, which torch compiles for the CPU too. test_windows_cuda.py has the GPU."""

import pytest


@pytest.mark.long
def test_a_fused_kernel_is_compiled_whatever_the_caller_has_decided():
    """Generation turns compilation off, and torch compiles a function only so many times."""
    import torch

    from apr.model import attention

    device = torch.device("cpu")
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        torch._dynamo.config.patch(recompile_limit=1),
    ):
        for length, width in ((20, 14), (26, 14), (26, 32)):  # the kernel takes heads of 16 elements or more
            q, k, v = (torch.randn(1, heads, length, width) for heads in (4, 2, 2))
            mask = attention.window_mask(8, 0, length, device)
            blocks = attention._blocks(8, 0, length, device)
            actual = attention.attend(q, k, v, blocks, 0.2, None)
            expected = attention.attend(q, k, v, mask, 0.2, None)
            assert (actual - expected).norm() <= 1e-5 * expected.norm()

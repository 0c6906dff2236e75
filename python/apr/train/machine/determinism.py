"""What a run needs torch to be set to, for as long as it lasts."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import deterministic

if TYPE_CHECKING:
    from collections.abc import Iterator

# cuBLAS splits sums by the room it has: eight buffers of 4 MiB
# (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
_WORKSPACE, _FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# cuDNN's attention adds up its gradients in any order; of these, torch takes the ways that do not.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def own_settings() -> Iterator[None]:
    """Within it, torch keeps gradients and makes float32 tensors, whatever the caller had set."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def determinism(*, asked: bool) -> Iterator[None]:
    """Within it, torch takes only algorithms that give the same bits each time; afterwards all is as before.

    Where a kernel has no such form, torch raises RuntimeError instead of computing.
    """
    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    try:
        os.environ.setdefault(_WORKSPACE, _FIXED)
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        # Nothing reads memory before it is written: filling it first would be work for nothing.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with sdpa_kernel(_ATTENTION):
            yield
    finally:
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)

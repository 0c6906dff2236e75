"""The settings of torch that a run needs, and restores when it ends."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import deterministic as torch_deterministic

if TYPE_CHECKING:
    from collections.abc import Iterator

# cuBLAS splits sums by the workspace it has. With this one, eight buffers of 4 MiB, it is deterministic
# (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
_WORKSPACE, _FIXED_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# Without cuDNN's attention, which sums gradients in any order. The others have deterministic forms.
_DETERMINISTIC_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def prefer_expandable_segments() -> None:
    """Let torch's GPU memory grow in place, unless the user has chosen otherwise or has used the GPU already.

    A compiled step of Qwen2.5-0.5B at 16 x 1024 reserves 26.7 GiB then, and 31.6 without. The variable stays
    set: torch reads it once in a process.
    """
    if torch.cuda.is_available() and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


@contextmanager
def training_settings(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Within the context, torch computes what a run needs, whatever the caller has set.

    Gradients are recorded, new tensors are float32, and random numbers come from a copy of the generators'
    state. Afterwards everything is as before.

    Args:
        device: the device that the run computes on.
        deterministic: use only algorithms that give the same bits each time. torch raises RuntimeError where
            a kernel has no such form. On a CPU, use one thread: how a sum is cut among threads decides its
            last bits.
    """
    default_dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        # A caller's default dtype or no_grad, as a notebook may have set it, must not change what a run
        # computes.
        torch.set_default_dtype(torch.float32)
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            # Streams, graphs and NCCL take the current device, which is otherwise the first GPU.
            torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
        ):
            if deterministic:
                if device.type == "cpu":
                    torch.set_num_threads(1)
                with _deterministic_algorithms():
                    yield
            else:
                yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(default_dtype)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch_deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    try:
        # The user's own choice stays, as it may be the other value that cuBLAS documents, `:16:8`.
        os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)
        # Benchmarking picks the fastest kernel, which may be another one the next time.
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory before it is written, so filling it first would only cost time.
        torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with sdpa_kernel(_DETERMINISTIC_ATTENTION):
            yield
    finally:
        torch_deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)

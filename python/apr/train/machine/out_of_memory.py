"""Recognizing that memory ran out, and advising which flags help."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.train.config import PretrainConfig

# torch's CPU allocator raises a plain RuntimeError; only this text tells it from others.
_CPU_ALLOCATOR_ERROR = "can't allocate memory"
# Weights, gradients and AdamW's two moments, 4 bytes each.
_BYTES_PER_PARAMETER = 16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, RuntimeError) and _CPU_ALLOCATOR_ERROR in str(error):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def out_of_memory(config: PretrainConfig, device: torch.device) -> str:
    """Return one line for a step that ran out of memory, with the flags that would help."""
    problem = _problem(device)
    windows = config.batch_size * (config.grad_accum or 1)
    # Smaller micro-batches come first: they change neither the data nor the size of a step.
    sizes = [size for size in range(1, config.batch_size // 2 + 1) if windows % size == 0]
    if sizes:
        return (
            f"{problem}: use --batch-size {sizes[-1]} --grad-accum {windows // sizes[-1]}, "
            f"which keeps {windows} windows per step"
        )
    advice = []
    if config.seq_length > 1:
        advice.append(f"--seq-length {config.seq_length // 2}")
    if config.precision == "fp32":
        advice.append("--precision bf16")
    advice.append("a smaller model or a device with more memory")
    return f"{problem} with one window at a time: use {', '.join(advice)}"


@contextmanager
def refusing_a_model_too_large(parameters: int, device: torch.device) -> Iterator[None]:
    """Refuse the run if memory runs out within the context, in which the model is made.

    No flag for batches helps there: the weights themselves do not fit.

    Args:
        parameters: number of the model's parameters.
        device: where the model is made.

    Raises:
        RefusedError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        needed = _BYTES_PER_PARAMETER * parameters / 2**30
        raise RefusedError(
            f"{_problem(device)} while loading the weights: with gradients and moments they need "
            f"{needed:.1f} GiB on {device}; free memory, or use a smaller model or a device with more memory"
        ) from None


def _problem(device: torch.device) -> str:
    return "CUDA out of memory" if device.type == "cuda" else "out of memory"

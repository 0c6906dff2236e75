"""Recognizing that memory ran out."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What errors say that are not a `torch.OutOfMemoryError`: those of torch's CPU allocator, of the CUDA
# runtime, and of libraries that allocate by themselves.
_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_REQUEST = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
# Weights, gradients and AdamW's two moments, 4 bytes each.
_BYTES_PER_PARAMETER = 16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    return _origin(error) is not None


def requested_bytes(error: BaseException) -> int:
    """Return the bytes that could not be had, as an error says; 0 if it does not."""
    found = _REQUEST.search(str(_origin(error)))
    return int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0


def _origin(error: BaseException | None) -> BaseException | None:
    """Return the error that says that memory ran out: this one, or one that it arose from."""
    # An exhausted memory ends the capture of a CUDA graph with another error, and the compiler wraps it.
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return error
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES):
            return error
        error = error.__cause__ or error.__context__
    return None


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
            f"{problem_of(device)} while loading the weights: with gradients and moments they need "
            f"{needed:.1f} GiB on {device}; free memory, or use a smaller model or a device with more memory"
        ) from None


def problem_of(device: torch.device) -> str:
    """Return in words that memory ran out."""
    return "CUDA out of memory" if device.type == "cuda" else "out of memory"

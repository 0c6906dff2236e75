"""What to say, and what would help, when memory runs out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.train.config import PretrainConfig
    from apr.train.prepared import Prepared

# How torch's allocator on the CPU puts it, in a plain RuntimeError.
_ON_THE_CPU = "can't allocate memory"
# Weights, gradients and two moments, float32.
_BYTES_A_PARAMETER = 16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    plain = isinstance(error, RuntimeError) and _ON_THE_CPU in str(error)
    return plain or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def out_of_memory(config: PretrainConfig, device: torch.device) -> str:
    """One line with the flags that would help; the first of them leaves the run's data as they are."""
    where = "CUDA out of memory" if device.type == "cuda" else "out of memory"
    windows = config.windows_per_step
    smaller = [b for b in range(1, config.batch_size // 2 + 1) if windows % b == 0]
    if smaller:
        flags = f"--batch-size {smaller[-1]} --grad-accum {windows // smaller[-1]}"
        return f"{where}: take {flags}, which keeps {windows} windows a step"
    rest = [f"--seq-length {config.seq_length // 2}"] if config.seq_length > 1 else []
    rest += ["--precision bf16"] if config.precision == "fp32" else []
    rest += ["a smaller model or a device with more memory"]
    return f"{where} with one window at a time: take {', '.join(rest)}"


@contextmanager
def building(prepared: Prepared) -> Iterator[None]:
    """Where the model is made and filled: there no flag for batches helps.

    Raises:
        RefusedError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        needed = _BYTES_A_PARAMETER * prepared.parameters / 2**30
        where = "CUDA out of memory" if prepared.device.type == "cuda" else "out of memory"
        raise RefusedError(
            f"{where} while the weights are loaded: with gradients and moments they take {needed:.1f} GiB on "
            f"{prepared.device}: free it for this run, or take a smaller model or a device with more memory"
        ) from None

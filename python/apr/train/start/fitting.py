"""Which micro-batch fits into memory: found before a run, and advised where memory ran out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from apr.errors import RefusedError
from apr.plurals import counted
from apr.train.machine.device import free_memory_bytes, memory_in_use, peak_memory_bytes
from apr.train.machine.out_of_memory import problem_of, requested_bytes
from apr.train.start.needs import memory_bytes
from apr.train.start.trial import peak_of

if TYPE_CHECKING:
    import torch

    from apr.model.config import ModelConfig
    from apr.train.config import ResolvedConfig
    from apr.train.prepared import Needs, Prepared

# The part of the free memory that a run may plan to use. The rest is for what is not counted: workspaces of
# libraries, gaps between blocks, other programs.
_USABLE = 0.95


def find_micro_batch(
    config: ResolvedConfig, model: ModelConfig, device: torch.device, *, sharing: int = 1
) -> tuple[int, str]:
    """Return the largest micro-batch whose run fits into the free memory, and a line that says why.

    On a CPU the estimate decides. On a GPU it proposes, and what it proposes is tried.

    Args:
        config: the options of the run; the micro-batches of its rank have to have one size.
        model: its model.
        device: where it runs.
        sharing: number of ranks that share the device's memory.

    Raises:
        RefusedError: not even one window at a time fits, or a trial failed for another reason than memory.
    """
    free, sizes = free_memory_bytes(device), config.micro_batches
    if free is None:
        return config.batch_size, "micro-batch: as given (auto: the system does not tell its free memory)"
    free //= sharing
    needs = {size: memory_bytes(config.split_into(size), model, device) for size in sizes}
    left = sizes
    tried: dict[int, int] = {}
    # Measured bytes by estimated ones, once a trial has shown them.
    factor = 1.0
    while True:
        size = next((size for size in left if factor * needs[size] <= _USABLE * free), None)
        if size is None:
            raise RefusedError(_too_large(config, model, device, needs[config.batch_size], free))
        if device.type == "cpu" or size in tried:
            break
        peak = peak_of(config.split_into(size), model, device)
        if peak is None or peak > _USABLE * free:
            left = [smaller for smaller in left if smaller < size]
        else:
            tried[size], factor = peak, peak / needs[size]
    how = "measured" if size in tried else "estimated"
    why = f"{gib(tried.get(size, needs[size]))} of {gib(free)} GiB, {how}"
    larger = [other for other in sizes if other > size]
    if larger:
        why += f"; {larger[-1]} would need about {gib(factor * needs[larger[-1]])} GiB"
    return size, f"micro-batch: {size} of the {counted(sizes[0], 'window')} per step (auto: {why})"


def check_same_micro_batch(prepared: Prepared) -> None:
    """Check that all ranks found the same micro-batch. All of them call this.

    Raises:
        RefusedError: they did not, because one has less free memory.
    """
    sizes = sorted({int(size) for (size,) in prepared.world.gather([prepared.config.batch_size])})
    if len(sizes) > 1:
        raise RefusedError(
            f"--micro-batch auto: {sizes[0]} windows at a time fit on one rank, {sizes[-1]} on another; use "
            f"--micro-batch {sizes[0]}"
        )


def check_memory(config: ResolvedConfig, model: ModelConfig, needs: Needs) -> None:
    """Check that the device has enough free memory.

    Raises:
        RefusedError: it has too little.
    """
    free = needs.free_memory_bytes
    if free is not None and needs.memory_bytes > free:
        raise RefusedError(_too_large(config, model, needs.device, needs.memory_bytes, free))


def out_of_memory(prepared: Prepared, error: BaseException, steps: int = 0) -> str:
    """Return one line for a run that ran out of memory, with the flags that would have fit.

    Args:
        prepared: the run.
        error: what was raised. What the run holds must not be freed yet: it is measured.
        steps: number of steps that were done.
    """
    config, model, device = prepared.config, prepared.model_config, prepared.device
    before = prepared.needs.memory_in_use_bytes
    held, more, free = memory_in_use(device) - before, requested_bytes(error), free_memory_bytes(device) or 0
    asked = f"{gib(more)} GiB more" if more else "more"
    problem = (
        f"{problem_of(device)} after {counted(steps, 'step')} with {counted(config.batch_size, 'window')} at "
        f"a time (it held {gib(held)} GiB and asked for {asked}; {gib(free)} GiB were free)"
    )
    # A run that holds more than was estimated would do so with smaller micro-batches too. What whole steps
    # hold is known once there was one.
    measured = max(held + more, peak_memory_bytes(device) - before if steps else 0)
    # Not less than the estimate, by which the next run is refused.
    factor = max(1.0, measured / memory_bytes(config, model, device))
    return f"{problem}; {_advice(config, model, device, held + free, factor)}"


def _too_large(
    config: ResolvedConfig, model: ModelConfig, device: torch.device, needed: int, free: int
) -> str:
    return (
        f"the run needs {gib(needed)} GiB of memory with {counted(config.batch_size, 'window')} at a time, "
        f"but {device} has only {gib(free)} GiB free; {_advice(config, model, device, free)}"
    )


def _advice(
    config: ResolvedConfig, model: ModelConfig, device: torch.device, available: int, factor: float = 1.0
) -> str:
    """Return the flags with which a run would fit.

    Args:
        config: the options of the run that does not fit.
        model: its model.
        device: where it runs.
        available: bytes that a run can have.
        factor: what a run holds, by what is estimated.
    """
    ways = []
    for recomputes in dict.fromkeys((config.activation_checkpointing, True)):
        changed = replace(config, activation_checkpointing=recomputes)
        # Smaller micro-batches change neither the data nor the tokens of a step.
        for size in (size for size in changed.micro_batches if size <= config.batch_size):
            needed = factor * memory_bytes(changed.split_into(size), model, device)
            flags = ["--activation-checkpointing"] if recomputes != config.activation_checkpointing else []
            if size != config.batch_size:
                flags.append(f"--micro-batch {size}")
            if flags and needed <= _USABLE * available:
                ways.append(f"{' '.join(flags)} (about {gib(needed)} GiB)")
                break
    if ways:
        return f"use {' or '.join(ways)}, which keeps {counted(config.windows_per_step, 'window')} per step"
    ways = ["a smaller model or a device with more memory"]
    if config.precision == "fp32" and device.type == "cuda":
        ways.insert(0, "--precision bf16")
    if config.seq_length > 1:
        ways.insert(0, f"--seq-length {config.seq_length // 2}")
    return f"use {', '.join(ways)}"


def gib(nbytes: float) -> str:
    """Return bytes in GiB, as text; small ones with more digits."""
    return f"{nbytes / 2**30:.1f}" if nbytes >= 2**30 else f"{nbytes / 2**30:.2g}"

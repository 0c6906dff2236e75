"""The device that a run computes on: which one, what it can do, and how busy it is."""

from __future__ import annotations

import math
import os
import re
import resource
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from apr.errors import UnavailableError, UsageError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.train.config import Precision

# In order of preference. cuDNN's attention reads grouped queries without copying them; instead of flash
# attention it saves 3.4 ms of a step of Qwen2.5-0.5B at 16 x 1024 on an H100 (115.6 ms). Where a kernel does
# not support the inputs, such as float32, torch uses the next.
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Dense bfloat16 FLOP/s by the exact name of the device (NVIDIA's data sheets). Parts of a similar name, on a
# PCIe card or a partition, reach less: for them no peak is known.
_PEAK_BF16 = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
# Limits of a container, of version 2 of control groups.
_CGROUP, _CGROUP_MEMORY = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")


def choose_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the device of that name. `auto` is the first GPU, or else the CPU; no other name falls back.

    Args:
        name: auto, cpu, cuda or cuda:N.
        local_rank: number of this process among several of a run on this host, each of which has a GPU of
            its own; None for a run in one process.

    Raises:
        UsageError: the name is not auto, cpu, cuda or cuda:N.
        UnavailableError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank is not None and ":" in name:
        raise UsageError(
            f"--device {name} is one GPU, but each of the run's processes needs its own; use --device cuda"
        )
    if local_rank is not None and local_rank >= count:
        raise UnavailableError(
            f"the run has process number {local_rank + 1} on this host, but only {counted(count, 'GPU')} "
            "found; start one process per GPU, or use --device cpu"
        )
    index = local_rank if local_rank is not None else int(name.partition(":")[2] or 0)
    if index >= count:
        raise UnavailableError(
            f"--device {name}: not available ({count} CUDA devices found); use --device cpu or auto"
        )
    return torch.device("cuda", index)


def default_precision(device: torch.device) -> Precision:
    """Return the precision that a run uses by default: bf16 on CUDA, fp32 on the CPU."""
    return "bf16" if device.type == "cuda" else "fp32"


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute with the fastest attention; with bf16, in bfloat16 over weights that stay float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), fastest_attention(device):
        yield


@contextmanager
def fastest_attention(device: torch.device) -> Iterator[None]:
    """Prefer the fastest attention that the inputs allow."""
    # With --deterministic, another choice of attention is in force already.
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        with sdpa_kernel(_ATTENTION, set_priority=True):
            yield
    else:
        yield


def describe(device: torch.device) -> str:
    """Return the device as text, with its name and memory or the number of threads."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{device} ({torch.cuda.get_device_name(device)}, {memory:.0f} GiB)"
    threads, cpus, asked = torch.get_num_threads(), available_cpus(), os.environ.get("OMP_NUM_THREADS")
    text = counted(threads, "thread")
    if threads > cpus:
        text += f" on {counted(cpus, 'CPU')}, which is slow; set OMP_NUM_THREADS={cpus}"
    elif asked is not None and threads < cpus:
        text += f" on {counted(cpus, 'CPU')}; OMP_NUM_THREADS is {asked}"
    return f"cpu ({text})"


def available_cpus() -> int:
    """Return the number of CPUs that this process may use at a time; a container may allow it fewer."""
    cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        # "max 100000" without a limit: microseconds of CPU time in each period of so many.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return max(1, cpus)


def why_slow(device: torch.device) -> str:
    """Return in words why a device may have become slow, with what the system tells about it."""
    if device.type == "cuda":
        return f"another program may be using {device}, or it is throttled; nvidia-smi shows both"
    return (
        f"other programs may be using the CPUs, or they are throttled (load average "
        f"{os.getloadavg()[0]:.1f} on {counted(available_cpus(), 'CPU')}, {describe(device)})"
    )


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Return the FLOP/s that the device reaches at most, or None if that is not known."""
    # A made-up peak would make `mfu` a made-up number.
    if device.type != "cuda" or precision != "bf16":
        return None
    return _PEAK_BF16.get(torch.cuda.get_device_name(device))


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of a GPU's memory, which an earlier run of the same process may have set."""
    if device.type == "cuda":
        # Memory that an earlier run left in the cache counts as reserved.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes held: reserved on a GPU by the run, or resident in memory by the process."""
    if device.type == "cuda":
        # Reserved, not allocated: the pools of CUDA graphs are missing from `max_memory_allocated`.
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the memory that a run could allocate now, in bytes, or None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        # MemAvailable, not MemFree: the page cache, which holds the shards just scanned, can be given back.
        free = [_rows("/proc/meminfo")["MemAvailable"]]
    except (OSError, KeyError, ValueError):
        return None
    # A container's limit; files in the page cache count, and those not used lately can be given back.
    with suppress(OSError, KeyError, ValueError):
        limit, used = (int(_CGROUP.joinpath(name).read_text(encoding="ascii")) for name in _CGROUP_MEMORY)
        free.append(limit - used + _rows(_CGROUP / "memory.stat")["inactive_file"])
    # That of `ulimit -v`.
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - _rows("/proc/self/status")["VmSize"])
    return max(0, min(free))


def memory_in_use(device: torch.device) -> int:
    """Return the bytes that this process holds now: reserved on a GPU, or resident in memory.

    Under `ulimit -v`, what is limited: its address space.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return _rows("/proc/self/status")["VmSize" if limited else "VmRSS"]


def _rows(path: str | Path) -> dict[str, int]:
    """Return the numbers of a pseudo file by name, in bytes."""
    numbers = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.replace(":", " ").partition(" ")
        number, *unit = value.split() or [""]
        if number.isdecimal():
            numbers[name] = int(number) * (1024 if unit == ["kB"] else 1)
    return numbers


class Utilization:
    """How busy the GPU is, as its driver measures it.

    Raises:
        UnavailableError: the driver does not measure this GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle: object = None
        if device.type == "cuda":
            import pynvml

            try:
                pynvml.nvmlInit()
                uuid = torch.cuda.get_device_properties(device).uuid
                # By UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, but not NVML's.
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                # A partition of a GPU (MIG) has a handle, and fails only when it is asked.
                self.percent()
            except pynvml.NVMLError as error:
                raise UnavailableError(
                    f"{device}: its utilization cannot be measured (NVML: {error})"
                ) from None

    def percent(self) -> float | None:
        """Return the percentage of the last sampling period in which a kernel ran; None without a GPU."""
        if self._handle is None:
            return None
        import pynvml

        return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)

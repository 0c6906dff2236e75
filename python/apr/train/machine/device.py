"""Where a run computes: found out, never assumed."""

from __future__ import annotations

import re
import resource
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from apr.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.train.config import Precision

# cuDNN's attention takes grouped queries as they are and is faster than flash attention on Hopper; each takes
# over where the one before does not do what is asked (float32, say).
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Dense bfloat16 FLOP/s by what the device calls itself (NVIDIA's data sheets): other parts of the same name,
# on a PCIe card or a partition, reach less.
_PEAK_BF16 = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def choose_device(asked: str) -> torch.device:
    """The device that was asked for; only `auto` chooses.

    Raises:
        UsageError: no device's name.
        UnavailableError: that device is not there.
    """
    if asked == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise UsageError(f"--device is {asked!r}: it must be auto, cpu, cuda or cuda:N")
    if asked == "cpu":
        return torch.device("cpu")
    index = int(asked.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise UnavailableError(
            f"--device {asked}: no such device ({count} CUDA devices here): take --device cpu or auto"
        )
    return torch.device("cuda", index)


def default_precision(device: torch.device) -> Precision:
    """bf16 on CUDA, fp32 elsewhere."""
    return "bf16" if device.type == "cuda" else "fp32"


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in bfloat16 where asked to, weights stay float32; with the device's best attention."""
    with ExitStack() as within:
        if precision == "bf16":
            within.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
            within.enter_context(sdpa_kernel(_ATTENTION, set_priority=True))
        yield


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{device} ({torch.cuda.get_device_name(device)}, {memory:.0f} GiB)"
    return f"cpu ({torch.get_num_threads()} threads)"


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s that the device can reach at most, or None where that is not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return _PEAK_BF16.get(torch.cuda.get_device_name(device))


def forget_peak_memory(device: torch.device) -> None:
    """Have the peak of a GPU's memory begin anew: a process may have had runs before this one."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held: on a GPU reserved by the run, on the CPU resident since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes(device: torch.device) -> int | None:
    """Memory that a run could take now, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 (a pseudo file)
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


class Utilization:
    """How busy the GPU is, in percent, as its driver measures it; None without a GPU.

    Raises:
        UnavailableError: there is a GPU whose driver does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle: object = None
        if device.type == "cuda":
            import pynvml

            try:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(_uuid(device))
                self.percent()  # some that have a handle do not measure: a partition of a GPU (MIG), say
            except pynvml.NVMLError as error:
                raise UnavailableError(
                    f"{device}: its utilization cannot be measured (NVML: {error})"
                ) from None

    def percent(self) -> float | None:
        """Share of the last sampling period in which a kernel ran."""
        if self._handle is None:
            return None
        import pynvml

        return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)


def _uuid(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

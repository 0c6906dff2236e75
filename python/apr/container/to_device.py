"""A state dict in memory of its own, the fast way to a device: bytes are read by position, in parallel."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apr.container.torch_dtypes import TORCH, empty
from apr.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apr._core import Container
    from apr.container.header import TensorInfo

# Page-locked buffers on the way to a GPU: while one is copied the next is read. Locking pages is dear (a
# second for a gigabyte), so there are few, and torch's allocator keeps them for the next call.
_BUFFERS, _BUFFER = 2, 32 << 20
# Characters of what a backend of torch says.
_SAID = 120


def to_device(
    container: Container,
    stored: Mapping[str, TensorInfo],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Read tensors into memory of a device, as `AprFile.to_torch`; `stored` says where their values lie."""
    device = known(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, not {dtype!r}")
    infos = {info.name: info for info in stored.values()}
    plain = [info for info in infos.values() if info.dtype in TORCH]
    found = _through_pinned(container, plain, device) if device.type == "cuda" else _read(container, plain)
    found |= {name: _dequantized(container, info) for name, info in infos.items() if name not in found}
    for name, values in found.items():
        wanted = dtype if values.is_floating_point() else None
        found[name] = values.to(device, wanted)
    return {name: found[info.name] for name, info in stored.items()}


def known(device: torch.device | str | int) -> torch.device:
    """The device, if it is there.

    Raises:
        DeviceError: torch knows none of that name, or this machine has none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise DeviceError(f"device {device!r} is not there: torch knows none of that name") from None
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise DeviceError(f"device {found} is not there: torch sees no CUDA device on this machine")
        if (found.index or 0) >= count:
            raise DeviceError(f"device {found} is not there: torch sees cuda:0 to cuda:{count - 1}")
    elif found.type != "cpu":
        try:
            torch.empty(0, device=found)
        except Exception as error:  # noqa: BLE001 (each backend has errors of its own)
            said = str(error).partition("\n")[0].strip()[:_SAID]
            raise DeviceError(f"device {found} is not there: {said}") from None
    return found


def _read(container: Container, infos: list[TensorInfo]) -> dict[str, torch.Tensor]:
    """Plain tensors to the CPU's memory."""
    found = {info.name: empty(info.shape, TORCH[info.dtype]) for info in infos}
    container.read([(info.offset, _bytes(found[info.name]).numpy().data) for info in infos])
    return found


def _dequantized(container: Container, info: TensorInfo) -> torch.Tensor:
    values = empty(info.shape, torch.float32)
    container.dequantize(info.name, 0, values.view(-1).numpy().data)
    return values


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1).view(torch.uint8)


@dataclass
class _Stretch:
    """Consecutive bytes of the file, as many as a buffer holds, and the tensors' bytes among them."""

    start: int
    stop: int
    pieces: list[tuple[str, int, int, int]]
    """(tensor, its first byte here, where that is in the stretch, bytes)"""


def _through_pinned(
    container: Container, infos: list[TensorInfo], device: torch.device
) -> dict[str, torch.Tensor]:
    """Plain tensors to a GPU: a stretch of the file at a time, through page-locked memory, to its places.

    While one stretch is on its way, a thread reads the next.
    """
    found = {info.name: torch.empty(info.shape, dtype=TORCH[info.dtype], device=device) for info in infos}
    flat = {name: _bytes(values) for name, values in found.items()}
    stretches = _stretches(infos)
    ring = deque(_Stage(device) for _ in stretches[:_BUFFERS])

    def read(stretch: _Stretch) -> _Stage:
        stage = ring[0]
        ring.rotate(-1)
        stage.copied.synchronize()
        container.read([(stretch.start, stage.host[: stretch.stop - stretch.start].numpy().data)])
        return stage

    with torch.cuda.device(device), ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read, stretch) for stretch in stretches[:1])
        for number, stretch in enumerate(stretches, 1):
            stage = coming.popleft().result()
            coming.extend(reader.submit(read, following) for following in stretches[number : number + 1])
            stage.there[: stretch.stop - stretch.start].copy_(
                stage.host[: stretch.stop - stretch.start], non_blocking=True
            )
            # One kernel for many tensors; there is no public name.
            torch._foreach_copy_(
                [_part(flat[name], first, size) for name, first, _, size in stretch.pieces],
                [stage.there[at : at + size] for _, _, at, size in stretch.pieces],
            )
            stage.copied.record()
    return found


def _part(values: torch.Tensor, first: int, size: int) -> torch.Tensor:
    return values if size == values.numel() else values[first : first + size]


class _Stage:
    """A page-locked buffer, its counterpart on the device, and whether what was in it has been copied."""

    def __init__(self, device: torch.device) -> None:
        self.host = torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=True)
        self.there = torch.empty(_BUFFER, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


def _stretches(infos: list[TensorInfo]) -> list[_Stretch]:
    """The file's bytes from the first tensor to the last, cut to what a buffer holds."""
    found: list[_Stretch] = []
    for info in sorted((info for info in infos if info.nbytes), key=lambda info: info.offset):
        first = 0
        while first < info.nbytes:
            offset = info.offset + first
            if not found or offset - found[-1].start >= _BUFFER:
                found.append(_Stretch(offset, offset, []))
            stretch = found[-1]
            size = min(info.nbytes - first, stretch.start + _BUFFER - offset)
            stretch.pieces.append((info.name, first, offset - stretch.start, size))
            stretch.stop = offset + size
            first += size
    return found

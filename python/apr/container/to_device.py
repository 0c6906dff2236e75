"""A state dict in memory of its own, the fast way to a device: bytes are read by position, in parallel."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from apr.container.torch_dtypes import TORCH, empty
from apr.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from apr._core import Container
    from apr.container.file import TensorInfo

# Page-locked buffers on the way to a GPU: while one is copied the next is read. Locking pages is dear (a
# second for a gigabyte), so there are few, and torch's allocator keeps them for the next call.
_BUFFERS, _BUFFER = 4, 16 << 20


def to_device(
    container: Container,
    stored: Mapping[str, TensorInfo],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Read tensors into memory of a device, as `AprFile.to_torch`; `stored` says where their values lie."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"device {device} is not there: torch sees no CUDA device on this machine")
    if device.type == "cuda":
        plain = [info for info in stored.values() if info.dtype in TORCH]
        found = _through_pinned(container, plain, device)
    else:
        found = {}
    made = {}
    for name, info in stored.items():
        values = found[info.name] if info.name in found else _read(container, info).to(device)
        made[name] = values.to(dtype) if dtype is not None and values.is_floating_point() else values
    return made


def _read(container: Container, info: TensorInfo) -> torch.Tensor:
    values = empty(info.shape, TORCH.get(info.dtype, torch.float32))
    if info.dtype in TORCH:
        container.read(info.offset, _bytes(values).numpy().data)
    else:
        container.dequantise(info.name, 0, values.view(-1).numpy().data)
    return values


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1).view(torch.uint8)


def _through_pinned(
    container: Container, infos: list[TensorInfo], device: torch.device
) -> dict[str, torch.Tensor]:
    """Plain tensors to a GPU: stretches of the file into a ring of buffers, from there to their places."""
    found = {info.name: torch.empty(info.shape, dtype=TORCH[info.dtype], device=device) for info in infos}
    flat = {name: _bytes(values) for name, values in found.items()}
    ring = deque(
        (torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
        for _ in range(_BUFFERS if infos else 0)
    )
    with torch.cuda.device(device):
        for start, stop, pieces in _stretches(infos):
            buffer, copied = ring[0]
            ring.rotate(-1)
            copied.synchronize()
            container.read(start, buffer[: stop - start].numpy().data)
            for name, at, offset, size in pieces:
                source = buffer[offset - start : offset - start + size]
                flat[name][at : at + size].copy_(source, non_blocking=True)
            copied.record()
    return found


def _stretches(infos: list[TensorInfo]) -> Iterator[tuple[int, int, list[tuple[str, int, int, int]]]]:
    """What each buffer holds: (start, stop) in the file, and (tensor, its byte, byte of the file, size)."""
    pieces: list[tuple[str, int, int, int]] = []
    start = stop = 0
    for info in sorted(infos, key=lambda info: info.offset):
        at = 0
        while at < info.nbytes:
            if pieces and info.offset + at - start >= _BUFFER:
                yield start, stop, pieces
                pieces = []
            if not pieces:
                start = info.offset + at
            size = min(info.nbytes - at, start + _BUFFER - (info.offset + at))
            pieces.append((info.name, at, info.offset + at, size))
            at += size
            stop = info.offset + at
    if pieces:
        yield start, stop, pieces

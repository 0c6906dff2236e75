"""A state dict in new memory, the fast way to a device: bytes are read by position, in parallel."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apr.container.devices import parse_device
from apr.container.torch_dtypes import TORCH, empty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apr._core import Container
    from apr.container.header import TensorInfo

# Page-locked buffers on the way to a GPU: while one is copied to the GPU, the next is filled. Locking pages
# is slow (a second for a gigabyte), so there are few, and torch's allocator keeps them for the next call.
_BUFFERS, _BUFFER_BYTES = 2, 32 << 20


def to_device(
    container: Container,
    stored: Mapping[str, TensorInfo],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Read tensors into new memory of a device.

    Args:
        container: the opened file.
        stored: for each name to return, the index entry that holds its values: a tied tensor has another's.
        device: the target.
        dtype: the dtype of floating-point tensors; None leaves them as stored, quantized ones as float32.

    Raises:
        DeviceError: the device does not exist.
        TypeError: `dtype` is not a torch dtype.
        TruncatedError: the file was cut short since it was opened.
    """
    target = parse_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, not {dtype!r}")
    # By stored tensor: a tied head and its embedding are read once, and share memory as in the model.
    infos = {info.name: info for info in stored.values()}
    plain = [info for info in infos.values() if info.dtype in TORCH]
    if target.type == "cuda":
        tensors = _read_through_pinned(container, plain, target)
    else:
        tensors = {info.name: empty(info.shape, TORCH[info.dtype]) for info in plain}
        container.read([(info.offset, _bytes_of(tensors[info.name]).numpy().data) for info in plain])
    for name, info in infos.items():
        if name not in tensors:  # quantized
            tensors[name] = empty(info.shape, torch.float32)
            container.dequantize(name, 0, tensors[name].view(-1).numpy().data)
    for name, values in tensors.items():
        # On a GPU, the stored bytes cross the bus and are converted there.
        tensors[name] = values.to(target, dtype if values.is_floating_point() else None)
    return {name: tensors[info.name] for name, info in stored.items()}


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1).view(torch.uint8)


@dataclass
class _Chunk:
    """Consecutive bytes of the file that fit into a buffer.

    Attributes:
        start: the first byte in the file.
        stop: the byte after the last.
        pieces: the parts of tensors in it, as (tensor, first byte within the tensor, first byte within the
            chunk, bytes).
    """

    start: int
    stop: int
    pieces: list[tuple[str, int, int, int]]


class _Buffer:
    """A page-locked buffer, its counterpart on the device, and an event for the end of the copies from it."""

    def __init__(self, device: torch.device) -> None:
        self.host = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
        # One copy per chunk instead of one per tensor: a model may have 18,867 small ones.
        self.device = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


def _read_through_pinned(
    container: Container, infos: list[TensorInfo], device: torch.device
) -> dict[str, torch.Tensor]:
    """Read plain tensors to a GPU: a chunk of the file at a time through page-locked memory.

    While one chunk is copied to the GPU, a thread reads the next.
    """
    tensors = {info.name: torch.empty(info.shape, dtype=TORCH[info.dtype], device=device) for info in infos}
    targets = {name: _bytes_of(values) for name, values in tensors.items()}
    chunks = _chunks(infos)
    # No more buffers than chunks: a small file locks few pages.
    ring = deque(_Buffer(device) for _ in chunks[:_BUFFERS])

    def read(chunk: _Chunk) -> _Buffer:
        buffer = ring[0]
        ring.rotate(-1)
        buffer.copied.synchronize()  # the copies of the chunk before must have left the buffer
        container.read([(chunk.start, buffer.host[: chunk.stop - chunk.start].numpy().data)])
        return buffer

    # One thread is enough: a read is parallel in itself, and does not hold the interpreter's lock.
    with torch.cuda.device(device), ThreadPoolExecutor(1) as reader:
        pending = deque(reader.submit(read, chunk) for chunk in chunks[:1])
        for number, chunk in enumerate(chunks, 1):
            buffer = pending.popleft().result()
            pending.extend(reader.submit(read, following) for following in chunks[number : number + 1])
            nbytes = chunk.stop - chunk.start
            buffer.device[:nbytes].copy_(buffer.host[:nbytes], non_blocking=True)
            # One kernel for many tensors: a kernel each would take longer than the copies of small ones.
            # torch has no public name for it.
            torch._foreach_copy_(
                [targets[name][first : first + size] for name, first, _, size in chunk.pieces],
                [buffer.device[at : at + size] for _, _, at, size in chunk.pieces],
            )
            buffer.copied.record()
    return tensors


def _chunks(infos: list[TensorInfo]) -> list[_Chunk]:
    """Cut the bytes of the file, from the first tensor to the last, to what a buffer holds."""
    chunks: list[_Chunk] = []
    # In file order, whatever the order of the names: each chunk is then one read.
    for info in sorted((info for info in infos if info.nbytes), key=lambda info: info.offset):
        first = 0
        while first < info.nbytes:
            offset = info.offset + first
            if not chunks or offset - chunks[-1].start >= _BUFFER_BYTES:
                chunks.append(_Chunk(offset, offset, []))
            chunk = chunks[-1]
            size = min(info.nbytes - first, chunk.start + _BUFFER_BYTES - offset)
            chunk.pieces.append((info.name, first, offset - chunk.start, size))
            chunk.stop = offset + size
            first += size
    return chunks

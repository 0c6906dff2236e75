"""A state dict in new memory, the fast way to a device: bytes are read by position, in parallel."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING, NoReturn

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from apr.container.byte_dtypes import BITS, STORED
from apr.container.devices import parse_device
from apr.container.dtypes import FLOATS, QUANTIZED
from apr.container.narrow import beyond_range
from apr.container.torch_dtypes import TORCH, check_torch_has, empty, of_bytes
from apr.container.torch_values import beyond, narrowed
from apr.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from apr._core import Container
    from apr.container.header import TensorInfo

# Page-locked buffers on the way to a GPU: while some are copied to it, the others are filled. Few and small:
# locking pages is slow (a second for a gigabyte), and 32 MiB stay in the processor's cache, so that what is
# read from the page cache goes to the GPU without a second trip through memory. torch's allocator keeps them
# for the next call.
_BUFFERS, _BUFFER_BYTES = 4, 8 << 20
# Bytes that a thread reads at a time: all threads share a buffer.
_SEGMENT_BYTES = 512 << 10
# Buffers whose copies may be under way at a time; the rest of the ring is being filled.
_COPIED_AT_A_TIME = 1
# Tensors smaller than this share an allocation and a copy with their neighbors in the file, of at most a
# buffer's size. 18,867 copies of 100 kB would take longer than their bytes.
_SMALL_BYTES = 1 << 20
# Allocations of neighbors are a multiple of this, so that they can be viewed as any dtype.
_ALIGNMENT = 64
# Bytes between two tensors that are copied along instead of beginning another copy.
_GAP_BYTES = 4096


def to_device(
    path: str,
    container: Container,
    stored: Mapping[str, TensorInfo],
    device: torch.device | str,
    dtype: torch.dtype | None,
    *,
    allow_overflow: bool,
) -> dict[str, torch.Tensor]:
    """Read tensors into new memory of a device.

    Args:
        path: the file, for errors.
        container: the opened file.
        stored: for each name to return, the index entry that holds its values: a tied tensor has another's.
        device: the target.
        dtype: the dtype of floating-point tensors; None leaves them as stored, quantized ones as float32.
        allow_overflow: whether values beyond the range of `dtype` become infinities.

    Raises:
        WeightsError: a value is beyond the range of `dtype`.
        UnsupportedError: torch does not have the dtype of a tensor.
        DeviceError: the device does not exist.
        TypeError: `dtype` is not a torch dtype.
        TruncatedError: the file was cut short since it was opened.
    """
    target = parse_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, not {dtype!r}")
    # By stored tensor: a tied head and its embedding are read once, and share memory as in the model.
    infos = {info.name: info for info in stored.values()}
    for info in infos.values():
        check_torch_has(path, info)
    # A tensor that is stored as bytes is read as bytes.
    plain = [
        replace(info, dtype=STORED, shape=(info.nbytes,)) if info.dtype in BITS else info
        for info in infos.values()
        if info.dtype not in QUANTIZED
    ]
    if target.type == "cuda":
        tensors = _read_to_gpu(container, plain, target)
    else:
        tensors = {info.name: empty(info.shape, TORCH[info.dtype]) for info in plain}
        container.read([(info.offset, _bytes_of(tensors[info.name]).numpy().data) for info in plain])
    overflows: dict[str, torch.Tensor] = {}
    for name, info in infos.items():
        if info.dtype in QUANTIZED:
            values = empty(info.shape, torch.float32)
            container.dequantize(name, 0, values.view(-1).numpy().data)
        else:
            values = of_bytes(tensors[name], info) if info.dtype in BITS else tensors[name]
        # On a GPU, the stored bytes cross the bus and are converted there.
        values = values.to(target)
        if dtype is not None and info.dtype in FLOATS | QUANTIZED:
            values, overflow = narrowed(values, dtype)
            if overflow is not None:
                overflows[name] = overflow
        tensors[name] = values
    if overflows and not allow_overflow and torch.stack(list(overflows.values())).any():
        name = next(name for name, overflow in overflows.items() if overflow)
        assert dtype is not None
        _refuse_overflow(path, container, infos[name], dtype)
    return {name: tensors[info.name] for name, info in stored.items()}


def _refuse_overflow(path: str, container: Container, info: TensorInfo, dtype: torch.dtype) -> NoReturn:
    """Raise the error for a tensor with a value beyond the range of a dtype, which is read again."""
    stored = to_device(path, container, {info.name: info}, "cpu", None, allow_overflow=True)[info.name]
    value = float(stored[beyond(stored, narrowed(stored, dtype)[0])].flatten()[0])
    advice = "choose a dtype with a larger range, or pass allow_overflow=True to get infinities"
    problem = beyond_range(info.name, value, str(dtype), advice)
    raise WeightsError(f"{path}: {problem}", path=path, tensor=info.name)


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1).view(torch.uint8)


@dataclass
class _Region:
    """Consecutive bytes of the file that become one allocation: a large tensor, or small neighbors."""

    start: int
    stop: int
    infos: list[TensorInfo]


@dataclass
class _Chunk:
    """Consecutive bytes of the file that fit into a buffer.

    Attributes:
        start: the first byte in the file.
        stop: the byte after the last.
        copies: the copies from it, as (number of the region, first byte within the region, first byte within
            the chunk, bytes).
    """

    start: int
    stop: int
    copies: list[tuple[int, int, int, int]] = field(default_factory=list)


def _read_to_gpu(
    container: Container, infos: list[TensorInfo], device: torch.device
) -> dict[str, torch.Tensor]:
    """Read plain tensors to a GPU, a chunk of the file at a time through page-locked memory."""
    regions = _regions(infos)
    chunks = _chunks(regions)
    with torch.cuda.device(device), _collector_paused():
        tensors = {info.name: torch.empty(info.shape, dtype=TORCH[info.dtype], device=device)
                   for info in infos if not info.nbytes}  # fmt: skip
        if not chunks:  # nothing but empty tensors, or none at all
            return tensors
        memory = [_allocate(region, tensors, device) for region in regions]
        # No more buffers than chunks: a small file locks few pages.
        ring = [
            torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
            for _ in range(min(_BUFFERS, len(chunks)))
        ]
        copied = [torch.cuda.Event() for _ in ring]  # type: ignore[no-untyped-call]
        held = min(_COPIED_AT_A_TIME, len(ring) - 1)

        def copy(number: int) -> None:
            place = number % len(ring)
            for region, first, at, size in chunks[number].copies:
                memory[region][first : first + size].copy_(ring[place][at : at + size], non_blocking=True)
            copied[place].record()
            if number >= held:
                # Its buffer is filled again when this returns.
                copied[(number - held) % len(ring)].synchronize()

        try:
            container.read_ring(
                [(chunk.start, chunk.stop - chunk.start) for chunk in chunks],
                [buffer.numpy().data for buffer in ring],
                held,
                _SEGMENT_BYTES,
                copy,
            )
        finally:
            # The ring must outlive the copies from it, also when a read fails.
            torch.cuda.current_stream().synchronize()
    return tensors


def _regions(infos: list[TensorInfo]) -> list[_Region]:
    """Divide tensors into allocations, in file order."""
    regions: list[_Region] = []
    small: _Region | None = None
    for info in sorted((info for info in infos if info.nbytes), key=lambda info: info.offset):
        stop = info.offset + info.nbytes
        if info.nbytes >= _SMALL_BYTES:
            regions.append(_Region(info.offset, stop, [info]))
            small = None
            continue
        if (
            small is None
            or not 0 <= info.offset - small.stop <= _GAP_BYTES
            or stop - small.start > _BUFFER_BYTES
            # Version 2 aligns tensors to 64 bytes; other forms do not.
            or (info.offset - small.start) % TORCH[info.dtype].itemsize
        ):
            small = _Region(info.offset, stop, [])
            regions.append(small)
        small.infos.append(info)
        small.stop = stop
    return regions


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's collector of cycles: thousands of new tensors start it often, and it finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _allocate(region: _Region, tensors: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """Allocate a region's tensors, and return its memory as bytes."""
    if len(region.infos) == 1:
        (info,) = region.infos
        tensors[info.name] = torch.empty(info.shape, dtype=TORCH[info.dtype], device=device)
        return _bytes_of(tensors[info.name])
    size = region.stop - region.start
    memory = torch.empty(-(-size // _ALIGNMENT) * _ALIGNMENT, dtype=torch.uint8, device=device)
    typed: dict[str, torch.Tensor] = {}
    for info in region.infos:
        if info.dtype not in typed:
            typed[info.dtype] = memory.view(TORCH[info.dtype])
        values = typed[info.dtype]
        view = values.as_strided(
            info.shape, _strides(info.shape), (info.offset - region.start) // values.itemsize
        )
        # Through DLPack each tensor gets a storage of its own, exactly its bytes, that keeps the memory
        # alive: `torch.save` of one writes no other, and checks for shared memory are not fooled.
        tensors[info.name] = from_dlpack(to_dlpack(view))
    return memory[:size]


@cache
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _chunks(regions: list[_Region]) -> list[_Chunk]:
    """Cut the bytes of the regions to what a buffer holds."""
    chunks: list[_Chunk] = []
    for number, region in enumerate(regions):
        first, size = 0, region.stop - region.start
        while first < size:
            offset = region.start + first
            if (
                not chunks
                or not 0 <= offset - chunks[-1].stop <= _GAP_BYTES
                or offset - chunks[-1].start >= _BUFFER_BYTES
            ):
                chunks.append(_Chunk(offset, offset))
            chunk = chunks[-1]
            count = min(size - first, chunk.start + _BUFFER_BYTES - offset)
            chunk.copies.append((number, first, offset - chunk.start, count))
            chunk.stop = offset + count
            first += count
    return chunks

"""The values of torch tensors: their bytes in memory, and in another dtype. Imports torch."""

from __future__ import annotations

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

# Tensors that behave as torch's own do. Others may redefine any operation.
_OWN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
# Devices on which a tensor with values has an address.
_ADDRESSED = {"cpu", "cuda"}


def plain(value: torch.Tensor, name: str = "") -> torch.Tensor:
    """Return a dense tensor with values, as one of torch's own class in the same memory.

    Args:
        value: any tensor.
        name: its name, for errors.

    Raises:
        TypeError: the tensor has another layout, or no values in memory: a meta, fake, lazy or wrapper
            tensor, or one whose storage was freed.
    """
    what = f"tensor {name!r}" if name else "the tensor"
    # A subclass may redefine methods, such as `detach`; the memory is what it is.
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 (the documented way out of __torch_function__)
        if isinstance(value, UninitializedTensorMixin):
            raise TypeError(f"{what} is not initialized; run the module once before saving it")
        if value.is_nested:
            raise TypeError(f"{what} is nested; save each of its tensors, or call .to_padded_tensor() first")
        if value.layout != torch.strided:
            raise TypeError(f"{what} has the layout {value.layout}; call .to_dense() first")
        if value.is_meta:
            raise TypeError(f"{what} is on the meta device and has no values; load or initialize it first")
        if value.is_quantized:
            raise TypeError(
                f"{what} has the quantized dtype {value.dtype}; call .dequantize() or .int_repr() first"
            )
        if value.device.type not in _ADDRESSED:
            return value
        if not _has_memory(value):
            raise TypeError(
                f"{what} ({type(value).__name__}) has no values in memory of its own; save the "
                "plain tensors behind it"
            )
        if type(value) in _OWN:
            return value
        same = torch.empty(0, dtype=value.dtype, device=value.device)
        same.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
        if value.is_conj():
            same = same.conj()
        return torch._neg_view(same) if value.is_neg() else same  # noqa: SLF001 (there is no public one)


def stored_values(value: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor from `plain`, row-major and on the CPU, as a flat uint8 tensor."""
    # Conjugation and negation may be pending as flags of a view.
    values = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # `contiguous` ignores the strides of dimensions of size 1, and `view` to another dtype does not.
    return values.as_strided((values.numel(),), (1,)).view(torch.uint8)


def _has_memory(value: torch.Tensor) -> bool:
    """Whether all values of a tensor are in its storage."""
    if not value.numel():
        return True
    try:
        # Tensors of torch's own transforms have no storage, and wrappers one without an address.
        if not value.data_ptr():
            return False
        size = value.untyped_storage().nbytes()
    except (RuntimeError, ValueError):
        return False
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return bool((value.storage_offset() + last + 1) * value.itemsize <= size)


def narrowed(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return floating-point values rounded once, to nearest even, and whether some are beyond the range.

    Returns:
        (result, overflow): `overflow` is a scalar on the device of the values, so that nothing waits for it;
        None if no value is.
    """
    if values.dtype == torch.float64 and dtype.is_floating_point and dtype.itemsize < 4:
        result = _to_odd(values).to(dtype)
    else:
        result = values.to(dtype)
    if not dtype.is_floating_point or torch.finfo(dtype).max >= torch.finfo(values.dtype).max:
        return result, None
    # On a CPU, the extremes take a tenth of the time of a look at each value, and rarely need one.
    if result.device.type == "cpu" and result.itemsize > 1 and result.numel():
        least, largest = torch.aminmax(result)
        if least.isfinite() and largest.isfinite():
            return result, None
    return result, beyond(values, result).any()


def beyond(values: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return where finite values are beyond the range of the dtype that they were converted to."""
    # torch does not compute with eight-bit dtypes.
    numbers = values.float() if values.itemsize == 1 else values
    if result.itemsize == 1:  # where not all dtypes have an infinity: torch may give the largest value
        return numbers.isfinite() & (numbers.abs() > torch.finfo(result.dtype).max)
    return numbers.isfinite() & ~result.isfinite()


def _to_odd(values: torch.Tensor) -> torch.Tensor:
    """Round float64 to float32 to odd, as `narrow` does in NumPy; its docstring says why."""
    nearest = values.float()
    back = nearest.double()
    off = (back != values) & ((nearest.view(torch.int32) & 1) == 0) & values.isfinite()
    towards = torch.where(values > back, torch.inf, -torch.inf).float()
    return torch.where(off, torch.nextafter(nearest, towards), nearest)

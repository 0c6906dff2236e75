"""Which tensors of a state dict share memory, and which of them can stand for the others."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the names of tensors that share memory, in sorted groups of two or more."""
    storages = defaultdict(list)
    for name, tensor in tensors.items():
        # Without memory the address is 0, which all such tensors would seem to share.
        if tensor.is_meta or not tensor.untyped_storage().nbytes():
            continue
        start, end = _address_range(tensor)
        storages[tensor.device, tensor.untyped_storage().data_ptr()].append((start, end, name))
    # Views of one storage share memory only if they overlap: halves of a fused matrix are separate tensors.
    groups = []
    for ranges in storages.values():
        # In address order, a tensor overlaps the group before it if it starts before that group's end.
        group_end = -1
        for start, end, name in sorted(ranges):
            if start >= group_end:
                groups.append([name])
            else:
                groups[-1].append(name)
            group_end = max(group_end, end)
    return sorted(sorted(group) for group in groups if len(group) > 1)


def duplicates(
    tensors: Mapping[str, torch.Tensor], *, preferred: Collection[str] = ()
) -> dict[str, list[str]]:
    """Choose one name of each group of tensors that share memory.

    Args:
        tensors: a state dict.
        preferred: names to choose where possible, such as those of a file; otherwise the first name.

    Returns:
        Each chosen name, with the sorted names that it stands for.

    Raises:
        RuntimeError: no tensor of a group covers all of its memory, so that none can stand for the others.
    """
    chosen = {}
    for group in overlapping(tensors):
        complete = [name for name in group if _covers_storage(tensors[name])]
        if not complete:
            raise RuntimeError(
                f"{', '.join(group)} share memory, but none covers the whole storage; clone the tensors first"
            )
        kept = next((name for name in complete if name in preferred), complete[0])
        chosen[kept] = [name for name in group if name != kept]
    return chosen


def _address_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address of the values and the one after the last; strides may leave gaps between."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


def _covers_storage(tensor: torch.Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.numel() * tensor.itemsize == storage.nbytes()

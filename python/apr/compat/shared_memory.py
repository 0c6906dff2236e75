"""Which tensors of a state share memory, and which of them stands for the others."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names of tensors that share memory, in groups of two or more, sorted."""
    storages = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.untyped_storage().nbytes():
            continue
        start, end = _extent(tensor)
        storages[tensor.device, tensor.untyped_storage().data_ptr()].append((start, end, name))
    groups = []
    for extents in storages.values():
        reached = -1
        for start, end, name in sorted(extents):
            if start >= reached:
                groups.append([name])
            else:
                groups[-1].append(name)
            reached = max(reached, end)
    return sorted(sorted(group) for group in groups if len(group) > 1)


def duplicates(
    tensors: Mapping[str, torch.Tensor], *, preferred: Collection[str] = ()
) -> dict[str, list[str]]:
    """Which name of each group that shares memory is kept, and which need not be.

    Args:
        tensors: a state.
        preferred: names that are kept where they can be, those of a file for example; else the first.

    Returns:
        The kept name to the others, sorted.

    Raises:
        RuntimeError: no tensor of a group covers all the memory, so that none can stand for it.
    """
    found = {}
    for group in overlapping(tensors):
        whole = [name for name in group if _is_whole(tensors[name])]
        if not whole:
            raise RuntimeError(
                f"{', '.join(group)} share memory and none covers it all: none can stand for the others"
            )
        kept = next((name for name in whole if name in preferred), whole[0])
        found[kept] = [name for name in group if name != kept]
    return found


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses between which its values lie."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


def _is_whole(tensor: torch.Tensor) -> bool:
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.numel() * tensor.itemsize == storage.nbytes()

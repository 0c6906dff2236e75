"""Host memory that a checkpoint's tensors are copied to before they are written."""

from __future__ import annotations

import torch
from torch import Tensor

# Bytes: what a view of any dtype may start at.
_ALIGNED = 64


class Room:
    """Host memory for the tensors of a checkpoint: taken once, used for one after the other.

    For tensors on a GPU it is pinned, which makes the copy several times as fast; where the system pins no
    more, it is not.
    """

    def __init__(self) -> None:
        self._bytes: Tensor | None = None

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors, good until the next call."""
        sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors.values()]
        cuda = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if self._bytes is None or len(self._bytes) != sum(sizes):
            self._bytes = _take(sum(sizes), pinned=cuda is not None)
        copies = {}
        for (name, tensor), part in zip(tensors.items(), torch.split(self._bytes, sizes), strict=True):
            copies[name] = part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name].copy_(tensor, non_blocking=True)
        if cuda is not None:
            torch.cuda.synchronize(cuda)
        return copies


def _take(size: int, *, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        if not pinned:
            raise
        return torch.empty(size, dtype=torch.uint8)

"""Host memory for a copy of a checkpoint's tensors, which is written while training continues."""

from __future__ import annotations

import torch
from torch import Tensor

# A view of any dtype may start at a multiple of this many bytes.
_ALIGNMENT = 64


class HostMemory:
    """One block of host memory, allocated once and reused for every checkpoint.

    For tensors on a GPU the block is pinned, which makes the copy several times as fast.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the tensors in the block. The next call overwrites them."""
        sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors.values()]
        cuda = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        # Kept, because pinning is slow: about half a second for 512 MB, where a checkpoint has 12 bytes per
        # parameter.
        if self._block is None or len(self._block) != sum(sizes):
            try:
                self._block = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=cuda is not None)
            except RuntimeError:
                # The system may limit how much memory is pinned. Pageable memory only copies more slowly.
                if cuda is None:
                    raise
                self._block = torch.empty(sum(sizes), dtype=torch.uint8)
        copies = {}
        for (name, tensor), part in zip(tensors.items(), torch.split(self._block, sizes), strict=True):
            copies[name] = part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name].copy_(tensor, non_blocking=True)
        if cuda is not None:
            # The copies are asynchronous, and the next step changes the weights that they read.
            torch.cuda.synchronize(cuda)
        return copies

"""Keys and values of earlier positions, so that generation computes each position once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.config import ModelConfig


class KvCache:
    """The keys and values of all layers, in memory for a fixed number of positions.

    Attributes:
        length: the number of positions that are filled.
        capacity: the number of positions that there is memory for.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, 2, batch_size, config.num_kv_heads, capacity, config.head_dim)
        self._memory = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        self.capacity = capacity

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new positions and return those of all positions.

        The caller advances `length` once all layers are done.

        Args:
            layer: index of the layer.
            k: [B, kv_heads, T, head_dim].
            v: as `k`.

        Raises:
            IndexError: there is no memory for so many positions.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} positions, not {end}")
        keys, values = self._memory[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

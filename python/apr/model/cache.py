"""Keys and values of earlier positions, so that generation computes each position once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.model.positions import Steps, View, views

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.config import ModelConfig
    from apr.model.layers import LayerKind


class KvCache:
    """The keys and values of all layers, in memory for a fixed number of positions.

    Attributes:
        length: the number of positions that are filled.
        capacity: the number of positions that there is memory for.
        device: where the memory is.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._kinds, self.device = config.layers, device
        shape = (config.num_layers, 2, batch_size, config.num_kv_heads, capacity, config.head_dim)
        # Zeros, not what the memory held: a captured graph multiplies values that are not filled yet by 0,
        # and 0 times NaN is NaN.
        memory = torch.zeros(shape, device=device, dtype=dtype)
        self._layers: list[tuple[Tensor, Tensor]] = [(keys, values) for keys, values in memory]
        self._steps: Steps | None = None
        self.length = 0
        self.capacity = capacity

    @property
    def steps(self) -> Steps:
        """The views of single positions."""
        if self._steps is None:
            self._steps = Steps(self._kinds, self.capacity, self.device)
        return self._steps

    def views(self, length: int) -> dict[LayerKind, View]:
        """Return the view of each kind of layer for the next `length` positions.

        Raises:
            IndexError: there is no memory for so many positions.
        """
        if self.length + length > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} positions, not {self.length + length}")
        if length == 1 and self.length > 0:
            return self.steps.at(self.length)
        return views(self._kinds, self.length, length, self.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new positions and return those of all positions.

        The caller has asked for the views of these positions, and advances `length` once all layers are done.

        Args:
            layer: index of the layer.
            k: [B, kv_heads, T, head_dim].
            v: as `k`.
        """
        keys, values = self.layer(layer)
        start, count = self.length, k.shape[2]
        keys.narrow(2, start, count).copy_(k)
        values.narrow(2, start, count).copy_(v)
        return keys.narrow(2, 0, start + count), values.narrow(2, 0, start + count)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the memory of one layer: keys and values [B, kv_heads, capacity, head_dim]."""
        return self._layers[index]

    def repeat(self, count: int) -> None:
        """Repeat each sequence of the batch `count` times: several continuations of one prompt."""
        if count > 1:
            self._layers = [
                (k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)) for k, v in self._layers
            ]


class CapturedCache:
    """The same memory at a position that only the device knows, for a step that a CUDA graph replays.

    Args:
        cache: the cache, with the prompt in it. It must not be used on its own any more.
    """

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self.length = 0  # The decoder advances it; here `position` counts.
        self.position = torch.full((1,), cache.length, dtype=torch.int64, device=cache.device)

    def views(self, length: int) -> dict[LayerKind, View]:
        """Return the view of each kind of layer for the next position."""
        assert length == 1
        return self._cache.steps.at_unknown(self.position)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one position, and return all memory, filled or not."""
        keys, values = self._cache.layer(layer)
        keys.index_copy_(2, self.position, k.to(keys.dtype))
        values.index_copy_(2, self.position, v.to(values.dtype))
        return keys, values

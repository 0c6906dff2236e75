"""A decoding step as one CUDA graph: the host launches one thing instead of a thousand kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.model.cache import CapturedCache

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.cache import KvCache
    from apr.model.decoder import Decoder

# Runs before the capture. In them kernels are chosen and libraries allocate their workspaces, neither of
# which may happen during a capture.
_WARM_UP_RUNS = 2


class CapturedStep:
    """One step of a model over a cache, captured when the object is created.

    Args:
        model: the model, on a CUDA device.
        cache: the cache, with the prompt in it. From here on only this object uses it.
        sequences: the batch size.
    """

    def __init__(self, model: Decoder, cache: KvCache, sequences: int) -> None:
        self._cache = CapturedCache(cache)
        self._ids = torch.zeros(sequences, 1, dtype=torch.int64, device=cache.device)
        self._model = model
        first = self._cache.position.clone()
        side = torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(cache.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                # Each writes to the next position again, which the first real step overwrites.
                self._step()
        torch.cuda.current_stream(cache.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._step()
            self._cache.position.add_(1)
        self._cache.position.copy_(first)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits [B, V] after ids [B, 1]. The next call overwrites them."""
        self._ids.copy_(ids)
        self._graph.replay()
        return self._logits

    def _step(self) -> Tensor:
        out: Tensor = self._model(self._ids, self._cache)[:, -1]
        return out

"""The layers of a decoder of any family, compiled by torch, with the backward pass of autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.train.parallel.gradients import watch
from apr.train.parallel.shard import is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from apr.model.decoder import Decoder


def compile_layers(model: Decoder) -> None:
    """Compile each layer of a model by itself.

    torch compiles one layer and reuses it, in 12 to 13 s on an H100. The whole model takes 50 to 66 s.
    """
    for layer in model.model.layers:
        if is_sharded(model):
            # What the layer computes, and not what puts its parameters together.
            forward: Callable[..., Tensor] = torch.compile(layer.forward, fullgraph=True, dynamic=False)
            layer.forward = forward
        else:
            layer.compile(fullgraph=True, dynamic=False)


class CompiledLayers:
    """Embedding, layers and last norm of a model, each layer compiled by itself.

    Args:
        model: the model. Its embedding and head require no gradients: those are computed elsewhere.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        compile_layers(model)
        self._embedded: Tensor | None = None
        self._hidden: Tensor | None = None
        model.model.embed_tokens.register_forward_hook(self._cut)

    def watch(self, ready: Callable[[Tensor], None]) -> None:
        """Call a function with each gradient as soon as a backward pass has completed it."""
        watch((p for p in self._model.parameters() if p.requires_grad), ready)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the input of the head [B * T, H] for ids [B, T], and keep what `backward` needs."""
        self.clear()
        with torch.enable_grad():
            self._hidden = self._model.hidden(ids).flatten(0, 1)
        return self._hidden.detach()

    def backward(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Compute all gradients from that of what `forward` returned.

        Args:
            gradient: [B * T, H].
            shape: B and T.

        Returns:
            The gradient of the rows of the embedding [B * T, H].
        """
        del shape
        assert self._hidden is not None
        self._hidden.backward(gradient)  # type: ignore[no-untyped-call]
        assert self._embedded is not None
        assert self._embedded.grad is not None
        return self._embedded.grad.flatten(0, 1)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the last backward pass by name."""
        return {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}

    def clear(self) -> None:
        """Forget the last gradients, so that the next backward pass writes new ones."""
        self._embedded = self._hidden = None
        for parameter in self._model.parameters():
            parameter.grad = None

    def _cut(self, _module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """End autograd's graph at the embedded tokens: their gradient is added to the table's elsewhere."""
        if torch.is_grad_enabled():
            self._embedded = output.detach().requires_grad_()
            return self._embedded
        return output

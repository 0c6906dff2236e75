"""A bfloat16 copy of a model: it computes the gradients of the fast step, and the update keeps it current."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from apr.model.decoder import softcap_slope, softcapped
from apr.model.names import EMBEDDING
from apr.train.compiled_layers import CompiledLayers
from apr.train.fast_layers import FastLayers
from apr.train.kernels import UpdateKernels, cross_entropy_gradient
from apr.train.loss import rows_at_a_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.optim import AdamW

    from apr.model.decoder import Decoder


class Bf16Copy:
    """A copy of a model's float32 weights in bfloat16, with the gradients computed in it.

    Against autocast, weights are rounded once in an update instead of once in a forward pass, the residual
    stream is bfloat16, and gradients are not converted to float32: 16 x 1024 tokens of Qwen2.5-0.5B take
    fewer bytes in each of these. The gradient of embedding and head is summed in float32, because tokens
    that occur often would lose digits. Layers of the common form are `FastLayers`; others are compiled.

    Args:
        model: the model in training, on a GPU, with float32 parameters.
        optimizer: AdamW over its parameters. Its moments are updated in place, and all its step counts become
            one tensor.
    """

    def __init__(self, model: Decoder, optimizer: AdamW) -> None:
        self._optimizer = optimizer
        self._copy = copy = type(model).empty(model.config, model.head_weight.device, torch.bfloat16)
        copy.model.recomputes = model.model.recomputes
        self._weights = dict(model.named_parameters())
        self._head = next(name for name, p in copy.named_parameters() if p is copy.head_weight)
        # The gradients of embedding and head are computed here, in float32.
        for parameter in (copy.model.embed_tokens.weight, copy.head_weight):
            parameter.requires_grad_(False)
        fast = FastLayers.fits(copy.config)
        self._layers = FastLayers(copy) if fast else CompiledLayers(copy)
        self._copies = {name: parameter.detach() for name, parameter in copy.named_parameters()}
        step = torch.zeros((), device=model.head_weight.device)
        for state in optimizer.state.values():
            state["step"] = step.copy_(state["step"])
        self._step = step
        self._float32: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] | None = None
        self._kernels: UpdateKernels | None = None

    def watch(self, ready: Callable[[Tensor], None]) -> None:
        """Call a function with gradients as soon as `add` has completed them; not with all of them."""
        self._layers.watch(ready)

    def refresh(self) -> None:
        """Round the weights again. Needed once, and after anything but `update` has changed them."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._copies.values()), list(self._weights.values()))

    def begin(self, *, accumulate: bool) -> None:
        """Begin a step.

        Args:
            accumulate: whether more than one micro-batch follows. Their gradients are then added in float32:
                in bfloat16 a sum of many loses digits.
        """
        if not accumulate:
            self._sums = None
        elif self._sums is None:
            self._sums = {
                name: torch.zeros_like(weight, memory_format=torch.contiguous_format)
                for name, weight in self._weights.items()
            }
        else:
            torch._foreach_zero_(list(self._sums.values()))

    def add(self, ids: Tensor, tokens: int) -> Tensor:
        """Compute the gradients of a micro-batch. With `accumulate`, they are added to those before.

        Args:
            ids: int64 [B, T + 1]: inputs and, shifted by one, targets.
            tokens: what the sum of losses is divided by: all tokens of the step.

        Returns:
            The sum of the losses divided by `tokens`, in nats, float64 [].
        """
        copy, inputs, targets = self._copy, ids[:, :-1], ids[:, 1:].flatten()
        with torch.no_grad():
            states, head = self._layers.forward(inputs), copy.head_weight
            cap = copy.config.final_softcap
            hidden_grad = torch.empty_like(states)
            losses = []
            head_grad: Tensor | None = None
            rows = rows_at_a_time(copy.config.vocab_size, ids.device, states.dtype)
            for first in range(0, len(targets), rows):
                part = slice(first, first + rows)
                logits = softcapped(F.linear(states[part], head), cap)
                slope = None if cap is None else softcap_slope(logits, cap)
                losses.append(cross_entropy_gradient(logits, targets[part], tokens))
                if slope is not None:
                    logits.mul_(slope)
                torch.mm(logits, head, out=hidden_grad[part])
                product = torch.mm(logits.T, states[part], out_dtype=torch.float32)
                head_grad = product if head_grad is None else head_grad.add_(product)
            assert head_grad is not None
            total = torch.cat(losses).sum(dtype=torch.float64) / tokens
            # Freed before the backward pass, which needs memory of its own.
            del logits
            embedded = self._layers.backward(hidden_grad, inputs.shape)
            self._float32 = {self._head: head_grad}
            if self._head != EMBEDDING:
                self._float32[EMBEDDING] = torch.zeros_like(self._weights[EMBEDDING])
            self._float32[EMBEDDING].index_add_(0, inputs.flatten(), embedded.float())
            if self._sums is not None:
                for name, gradient in self._gradients().items():
                    self._sums[name] += gradient
        return total

    def clear(self) -> None:
        """Forget the gradients of the last micro-batch, so that the next one writes new ones."""
        self._float32 = {}
        self._layers.clear()

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the step by name: bfloat16 or float32."""
        return self._gradients() if self._sums is None else self._sums

    def fix_addresses(self, gradients: Mapping[str, Tensor]) -> None:
        """Build the tables of the update. From here on these gradients must stay where they are."""
        states = [self._optimizer.state[weight] for weight in self._weights.values()]
        decay_of = {
            p: group["weight_decay"] for group in self._optimizer.param_groups for p in group["params"]
        }
        self._kernels = UpdateKernels(
            [weight.detach() for weight in self._weights.values()],
            [(state["exp_avg"], state["exp_avg_sq"]) for state in states],
            [gradients[name] for name in self._weights],
            list(self._copies.values()),
            [decay_of[weight] for weight in self._weights.values()],
        )

    def norm(self) -> Tensor:
        """Return the norm of all gradients together: float32 []."""
        assert self._kernels is not None
        return self._kernels.norm()

    def update(self, scale: Tensor, skip: Tensor) -> None:
        """Update the weights, the moments and the copy.

        Args:
            scale: float32 []: the gradients are divided by it.
            skip: float32 []: 1 to change nothing, else 0.
        """
        assert self._kernels is not None
        group = self._optimizer.param_groups[0]
        self._kernels.update(
            step=self._step, lr=group["lr"], scale=scale, skip=skip, betas=group["betas"], eps=group["eps"]
        )

    def _gradients(self) -> dict[str, Tensor]:
        return self._layers.gradients() | self._float32

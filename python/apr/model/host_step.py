"""A decoding step of one sequence on the CPU: what `Decoder` computes, with as few operations as it takes.

A token of SmolLM2-135M is 211 products, which read all weights once, and a thousand small operations of torch
that took a third of the time. Here are about half as many. `benches/generate.py` has the figure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from apr.model.attention import attend
from apr.model.decoder import ACTIVATIONS, Attention, Body, Decoder, Float32Norm, Layer, Mlp
from apr.model.rotary import rotate

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.cache import KvCache
    from apr.model.positions import View

_OWN = {Decoder, Body, Layer, Attention, Mlp, Float32Norm, nn.RMSNorm, nn.Linear, nn.Embedding, nn.ModuleList}


class HostStep:
    """One step of a model over a cache. The weights are read where they are; nothing is copied.

    Args:
        model: a model for which `fits` is true.
        cache: the cache, with the prompt of one sequence in it.
    """

    def __init__(self, model: Decoder, cache: KvCache) -> None:
        self._model, self._cache, self._config = model, cache, model.config
        self._layers = [_Weights.of(cast("Layer", layer)) for layer in model.model.layers]
        self._last_norm = _norm_weight(model.model, "norm")
        self._activation = ACTIVATIONS[model.config.activation]

    @staticmethod
    def fits(model: Decoder) -> bool:
        """Return whether a step computes what the model does: float32 on the CPU, and no module replaced."""
        weight = model.head_weight
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32
        return plain and all(map(_unchanged, model.modules()))

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits [1, V] after ids [1, 1]."""
        config, cache = self._config, self._cache
        views = {kind: (view, _turned(view.sin)) for kind, view in cache.views(1).items()}
        x = self._model.model.embedded(ids.view(()))
        for index, weights in enumerate(self._layers):
            x = self._layer(index, weights, x, *views[config.layers[index]])
        cache.length += 1
        x = self._normed(x, self._last_norm)
        return self._model.logits(x if config.logits_divisor == 1 else x / config.logits_divisor)[None]

    def _layer(self, index: int, weights: _Weights, x: Tensor, view: View, turned: Tensor | None) -> Tensor:
        """Map a row [hidden_size] to the same shape, as `Layer` does."""
        y = self._attended(index, weights, self._normed(x, weights.before_attention), view, turned)
        x = self._added(x, self._normed(y, weights.after_attention))
        y = self._normed(x, weights.before_mlp)
        gate = self._activation(F.linear(y, weights.gate))
        y = F.linear(gate.mul_(F.linear(y, weights.up)), weights.down)
        return self._added(x, self._normed(y, weights.after_mlp))

    def _attended(
        self, index: int, weights: _Weights, x: Tensor, view: View, turned: Tensor | None
    ) -> Tensor:
        config = self._config
        q, k = F.linear(x, weights.q, weights.q_bias), F.linear(x, weights.k, weights.k_bias)
        v = F.linear(x, weights.v, weights.v_bias)
        if config.qk_norm == "projection":
            q, k = self._normed(q, weights.q_norm), self._normed(k, weights.k_norm)
        if config.qk_norm == "head":
            q, k = (
                F.rms_norm(part.view(-1, config.head_dim), norm.shape, norm, config.rms_norm_eps).view(-1)
                for part, norm in ((q, weights.q_norm), (k, weights.k_norm))
                if norm is not None
            )
        # Both in one: each operation on a few rows costs as much as on one.
        qk = torch.cat((q, k)).view(1, -1, 1, config.head_dim)
        rope = config.layers[index].rope
        if rope is not None and view.cos is not None and view.sin is not None and turned is not None:
            if rope.interleaved or rope.dim < config.head_dim:
                qk = rotate(qk, view.cos, view.sin, interleaved=rope.interleaved)
            else:
                qk = torch.addcmul(qk * view.cos, qk.roll(rope.dim // 2, -1), turned)
        k = qk.narrow(1, config.num_heads, config.num_kv_heads)
        keys, values = self._cache.append(index, k, v.view(1, -1, 1, config.head_dim))
        if view.last is not None:
            keys, values = keys[:, :, -view.last :], values[:, :, -view.last :]
        q = qk.narrow(1, 0, config.num_heads)
        mixed = attend(q, keys, values, None, config.attention_scale, config.attention_softcap)
        return F.linear(mixed.view(-1), weights.o, weights.o_bias)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return the RMSNorm of a row; the row itself without a weight."""
        if weight is None:
            return x
        # The fused norm of torch is six operations on a CPU.
        mean_square = torch.dot(x, x).item() / x.numel()
        return (x * weight).mul_(1 / math.sqrt(mean_square + self._config.rms_norm_eps))

    def _added(self, x: Tensor, branch: Tensor) -> Tensor:
        factor = self._config.residual_multiplier
        return x + (branch if factor == 1 else branch * factor)


def _unchanged(module: nn.Module) -> bool:
    """Return whether a module computes what its class does. An adapter is of another class."""
    hooks = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001
    return type(module) in _OWN and not hooks and "forward" not in vars(module)


def _turned(sin: Tensor | None) -> Tensor | None:
    """Return sines with the signs of the half that each is multiplied with."""
    if sin is None:
        return None
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), -1)


class _Weights(NamedTuple):
    """The parameters of one layer; None for those that its family does not have."""

    before_attention: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor | None
    gate: Tensor
    up: Tensor
    down: Tensor
    after_mlp: Tensor | None

    @classmethod
    def of(cls, layer: Layer) -> _Weights:
        """Collect them once: looking one up in a module takes as long as a small operation."""
        attention, mlp, names = layer.self_attn, layer.mlp, layer.norms
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        return cls(
            _norm_weight(layer, names.before_attention),
            q.weight,
            k.weight,
            v.weight,
            o.weight,
            q.bias,
            k.bias,
            v.bias,
            o.bias,
            _norm_weight(attention, "q_norm"),
            _norm_weight(attention, "k_norm"),
            _norm_weight(layer, names.after_attention),
            _norm_weight(layer, names.before_mlp),
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
            _norm_weight(layer, names.after_mlp),
        )


def _norm_weight(parent: nn.Module, name: str | None) -> Tensor | None:
    """Return what a norm multiplies by: its weight, and its offset where it has one."""
    norm = None if name is None else getattr(parent, name, None)
    if isinstance(norm, Float32Norm):
        return norm.weight + norm.offset
    return None if norm is None else norm.weight

"""The layers of the most common decoders with a forward and a backward pass written out, for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from apr.model.rotary import rotary_tables
from apr.train.layer_kernels import (
    add_norm,
    gated,
    gated_backward,
    norm_backward,
    norm_programs,
    rotate_back,
    rotate_heads,
    rotation_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder, Layer
    from apr.model.rope import Rope


class FastLayers:
    """Embedding, layers and last norm of a model, without autograd.

    Against layers that torch compiles, query, key and value are one matrix product, and so are gate and up;
    the backward pass computes their gradients in one place, so that nothing has to be joined. A norm and the
    addition before it are one kernel. There is nothing to compile but six small kernels.

    Args:
        model: a model of a configuration that `fits`. Its projections become views of the joined ones, so
            that whoever writes to its parameters writes to them.
    """

    def __init__(self, model: Decoder) -> None:
        config = self._config = model.config
        self._ready: Callable[[Tensor], None] | None = None
        self._embedding = model.model.embed_tokens.weight.detach()
        self._last_norm: Tensor = model.get_parameter("model.norm.weight").detach()
        self._recomputes = model.model.recomputes
        layers = cast("Iterable[Layer]", model.model.layers)
        self._layers = [_LayerWeights.join(layer, config) for layer in layers]
        # Of each layer: what its backward pass needs, or its input, from which that is computed again.
        self._saved: list[_Saved | Tensor] = []
        self._last: tuple[Tensor, Tensor] | None = None
        self._tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        # The gradients of norms and biases are summed in two steps: over some rows of a batch by the kernels
        # of each layer, and over these sums, for all layers at once, at the end of a backward pass.
        device, width = self._embedding.device, config.hidden_size
        norms, columns = 2 * config.num_layers + 1, len(self._layers[0].qkv.weight)
        self._norm_sums = torch.empty(norms, 0, width, device=device)
        self._norm_gradients = torch.empty(norms, width, device=device)
        self._bias_sums = torch.empty(config.num_layers, 0, columns, device=device)
        self._bias_gradients = torch.empty(config.num_layers, columns, device=device)

    @staticmethod
    def fits(config: ModelConfig) -> bool:
        """Whether the layers are of the form that is written out here: that of Llama, Qwen2 and SmolLM3."""
        norms = config.norms
        return (
            config.norm_kind == "plain"
            and norms.before_attention is not None
            and norms.before_mlp is not None
            and norms.after_attention is None
            and norms.after_mlp is None
            and config.qk_norm is None
            and not config.o_bias
            and config.activation == "silu"
            and config.attention_softcap is None
            and config.embedding_multiplier == config.residual_multiplier == config.logits_divisor == 1
            and all(
                kind.window is None
                and (kind.rope is None or (kind.rope.dim == config.head_dim and not kind.rope.interleaved))
                for kind in config.layers
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return the normalized last hidden state [B * T, H] of ids [B, T]; keep what `backward` needs."""
        x, branch = F.embedding(ids, self._embedding).flatten(0, 1), None
        self._saved = []
        self._make_room_for_sums(len(x))
        for index in range(len(self._layers)):
            saved, branch = self._forward_layer(index, x, branch, ids.shape)
            x = saved.middle
            self._saved.append(saved.x if self._recomputes else saved)
        x, normed, scales = add_norm(x, branch, self._last_norm, self._config.rms_norm_eps)
        self._last = x, scales
        return normed

    def backward(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Compute all gradients from that of what `forward` returned.

        Args:
            gradient: [B * T, H].
            shape: B and T.

        Returns:
            The gradient of the embedded tokens [B * T, H].
        """
        assert self._last is not None
        (x, scales), self._last = self._last, None
        residual = norm_backward(gradient, x, self._last_norm, scales, None, self._norm_sums[-1])
        for index in reversed(range(len(self._layers))):
            saved = self._saved.pop()
            if isinstance(saved, torch.Tensor):
                saved, _ = self._forward_layer(index, saved, None, shape)
            self._backward_layer(index, saved, residual, shape)
            if self._ready is not None:
                layer = self._layers[index]
                for matrix in (layer.down, layer.gate_up, layer.output, layer.qkv):
                    self._ready(matrix.gradient)
        torch.sum(self._norm_sums, 1, out=self._norm_gradients)
        torch.sum(self._bias_sums, 1, out=self._bias_gradients)
        return residual

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the last backward pass by name: float32 for norms and biases."""
        norms = self._config.norms
        found: dict[str, Tensor] = {"model.norm.weight": self._norm_gradients[-1]}
        for index, layer in enumerate(self._layers):
            prefix = f"model.layers.{index}."
            found[f"{prefix}{norms.before_attention}.weight"] = self._norm_gradients[2 * index]
            found[f"{prefix}{norms.before_mlp}.weight"] = self._norm_gradients[2 * index + 1]
            parts = {"weight": layer.qkv.gradient}
            if layer.bias is not None:
                parts["bias"] = self._bias_gradients[index]
            for kind, values in parts.items():
                heads = zip("qkv", layer.split_heads(values, self._config), strict=True)
                found |= {f"{prefix}self_attn.{name}_proj.{kind}": part for name, part in heads}
            found[f"{prefix}self_attn.o_proj.weight"] = layer.output.gradient
            gate, up = layer.gate_up.gradient.chunk(2)
            found |= {f"{prefix}mlp.gate_proj.weight": gate, f"{prefix}mlp.up_proj.weight": up}
            found[f"{prefix}mlp.down_proj.weight"] = layer.down.gradient
        return found

    def watch(self, ready: Callable[[Tensor], None]) -> None:
        """Call a function with the gradients of a layer's matrices once a backward pass has computed them."""
        self._ready = ready

    def clear(self) -> None:
        """Do nothing: each backward pass writes to the same gradients."""

    def _forward_layer(
        self, index: int, x: Tensor, branch: Tensor | None, shape: torch.Size
    ) -> tuple[_Saved, Tensor]:
        """Compute a layer of the sum of `x` and `branch`.

        Returns:
            What the backward pass needs, and the output of the MLP, which the next norm adds to
            the residual stream.
        """
        layer, eps = self._layers[index], self._config.rms_norm_eps
        x, normed, scales = add_norm(x, branch, layer.attention_norm, eps)
        projected = layer.qkv.of(normed, layer.bias)
        tables = self._rotary(index, shape[1])
        if tables is not None:
            rotate_heads(projected, self._config.num_heads + self._config.num_kv_heads, *tables)
        heads = self._heads(projected, shape)
        q, k, v = (part.requires_grad_() for part in layer.split_heads(heads, self._config, dim=1))
        # The only operation that autograd records: torch does not offer its backward pass by itself.
        with torch.enable_grad():
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self._config.attention_scale, enable_gqa=True
            )
        together = mixed.detach().transpose(1, 2).reshape(len(x), -1)
        middle, middle_normed, middle_scales = add_norm(x, layer.output.of(together), layer.mlp_norm, eps)
        gate_up = layer.gate_up.of(middle_normed)
        product = gated(gate_up)
        saved = _Saved(
            x, normed, scales, projected, (q, k, v), mixed, together, middle, middle_normed, middle_scales,
            gate_up, product,
        )  # fmt: skip
        return saved, layer.down.of(product)

    def _backward_layer(self, index: int, saved: _Saved, residual: Tensor, shape: torch.Size) -> None:
        """Write a layer's gradients; `residual`, that of its output, becomes that of its input."""
        layer = self._layers[index]
        product_gradient = layer.down.backward(residual, saved.product)
        gated_backward(product_gradient, saved.gate_up)
        normed_gradient = layer.gate_up.backward(saved.gate_up, saved.middle_normed)
        norm_backward(
            normed_gradient,
            saved.middle,
            layer.mlp_norm,
            saved.middle_scales,
            residual,
            self._norm_sums[2 * index + 1],
        )
        mixed_gradient = self._heads(layer.output.backward(residual, saved.together), shape)
        parts = torch.autograd.grad(saved.mixed, saved.parts, mixed_gradient)
        # Written over the projections themselves, which nothing needs any more.
        out, first = saved.projected, 0
        sums = None if layer.bias is None else self._bias_sums[index]
        for part, rotated in zip(parts, (True, True, False), strict=True):
            tables = self._rotary(index, shape[1]) if rotated else None
            rotate_back(part, out, first, tables, sums)
            first += part.shape[1] * part.shape[3]
        normed_gradient = layer.qkv.backward(out, saved.normed)
        norm_backward(
            normed_gradient, saved.x, layer.attention_norm, saved.scales, residual, self._norm_sums[2 * index]
        )

    def _heads(self, values: Tensor, shape: torch.Size) -> Tensor:
        """View [B * T, heads * head_dim] as [B, heads, T, head_dim]."""
        return values.view(*shape, -1, self._config.head_dim).transpose(1, 2)

    def _rotary(self, index: int, length: int) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of a layer's rotation, [T, head_dim / 2]; None for a layer without."""
        rope = self._config.layers[index].rope
        if rope is None:
            return None
        if (rope, length) not in self._tables:
            # The second half of each row repeats the first.
            cos, sin = rotary_tables(rope, 0, length, self._embedding.device)
            half = rope.dim // 2
            self._tables[rope, length] = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        return self._tables[rope, length]

    def _make_room_for_sums(self, rows: int) -> None:
        """Allocate the partial sums of a batch of so many rows, unless the last one had as many."""
        programs, blocks = norm_programs(rows), rotation_blocks(rows)
        if (self._norm_sums.shape[1], self._bias_sums.shape[1]) != (programs, blocks):
            norms, _, width = self._norm_sums.shape
            layers, _, columns = self._bias_sums.shape
            self._norm_sums = self._norm_sums.new_empty(norms, programs, width)
            has_bias = self._layers[0].bias is not None
            self._bias_sums = self._bias_sums.new_empty(layers, blocks if has_bias else 0, columns)


@dataclass(frozen=True)
class _Matrix:
    """The weight of a projection [out, in], and its gradient."""

    weight: Tensor
    gradient: Tensor

    def of(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Project [N, in] to [N, out]."""
        return F.linear(x, self.weight, bias)

    def backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Write the weight's gradient, and return that of the input `x`, from that of the output."""
        torch.mm(gradient.T, x, out=self.gradient)
        return gradient @ self.weight


@dataclass(frozen=True)
class _LayerWeights:
    """The weights of a layer, those that multiply the same input as one matrix."""

    attention_norm: Tensor
    qkv: _Matrix
    bias: Tensor | None
    output: _Matrix
    mlp_norm: Tensor
    gate_up: _Matrix
    down: _Matrix

    @classmethod
    def join(cls, layer: Layer, config: ModelConfig) -> _LayerWeights:
        """Return the weights of a layer, whose parameters become views of them."""
        attention, mlp, norms = layer.self_attn, layer.mlp, config.norms
        assert norms.before_attention is not None
        assert norms.before_mlp is not None
        qkv, bias = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        return cls(
            attention_norm=getattr(layer, norms.before_attention).weight.detach(),
            qkv=qkv,
            bias=bias,
            output=_joined(attention.o_proj)[0],
            mlp_norm=getattr(layer, norms.before_mlp).weight.detach(),
            gate_up=_joined(mlp.gate_proj, mlp.up_proj)[0],
            down=_joined(mlp.down_proj)[0],
        )

    @staticmethod
    def split_heads(values: Tensor, config: ModelConfig, dim: int = 0) -> tuple[Tensor, ...]:
        """Return the parts of queries, keys and values: of a dimension of rows, or of whole heads."""
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        unit = values.shape[dim] // sum(sizes)
        return torch.split(values, [size * unit for size in sizes], dim)


class _Saved(NamedTuple):
    """What the backward pass of a layer needs, in the order of the forward pass."""

    x: Tensor
    normed: Tensor
    scales: Tensor
    projected: Tensor
    parts: tuple[Tensor, Tensor, Tensor]
    mixed: Tensor
    together: Tensor
    middle: Tensor
    middle_normed: Tensor
    middle_scales: Tensor
    gate_up: Tensor
    product: Tensor


def _joined(*projections: nn.Linear) -> tuple[_Matrix, Tensor | None]:
    """Return the weights and biases of projections as one, of which theirs become views."""
    weight = torch.cat([projection.weight.detach() for projection in projections])
    biases = [projection.bias.detach() for projection in projections if projection.bias is not None]
    bias = torch.cat(biases) if biases else None
    first = 0
    for projection in projections:
        part = slice(first, first := first + projection.out_features)
        projection.weight = nn.Parameter(weight[part], requires_grad=False)
        if bias is not None:
            projection.bias = nn.Parameter(bias[part], requires_grad=False)
    return _Matrix(weight, torch.empty_like(weight)), bias

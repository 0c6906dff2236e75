"""The decoder: one module for Qwen2 and Llama, with transformers' parameter names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from apr.container.load import load
from apr.errors import RefusedError
from apr.model.config import ModelConfig
from apr.model.fill import fill, has_head
from apr.model.names import check_layers

if TYPE_CHECKING:
    from os import PathLike


class Decoder(nn.Module):
    """A causal language model of the Qwen2 or Llama family.

    A tied head has no parameter of its own: `model.embed_tokens.weight` is used twice. `from_apr` loads a
    model from a file; `empty` creates one without values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Not a buffer: `to(dtype)` would round it to bfloat16, and `to_empty` would leave it without values.
        self._rotary: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_apr(
        cls,
        path: str | PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a model from a file. Every parameter is filled once and every tensor is used.

        Args:
            path: an .apr file, or the index or directory of a model in several files.
            device: where the parameters are.
            dtype: the dtype of all parameters.

        Raises:
            AprError: the file is not valid.
            RefusedError: the metadata do not describe a Llama or Qwen2 decoder.
            WeightsError: the tensors do not match the model or are not trained weights; the message names
                them.
        """
        with load(path) as file:
            try:
                config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
            except RefusedError as error:
                raise type(error)(f"{file.path}: {error}") from None
            check_layers(file.path, config, len(file))
            model = cls.empty(config, device, dtype)
            fill(config, model.named_parameters(), file)
        return model

    @classmethod
    def empty(cls, config: ModelConfig, device: str | torch.device, dtype: torch.dtype) -> Self:
        """Create a model whose parameters have memory on `device` but no values yet."""
        # On the meta device nothing is allocated or drawn. torch's own initialization would draw 494 M random
        # numbers for Qwen2.5-0.5B, only for the file to replace them.
        with torch.device("meta"):
            model = cls(config).to(dtype)
        return model.to_empty(device=device)

    @property
    def head_weight(self) -> Tensor:
        """The output projection: [V, hidden_size]."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute the logits of the next token at each position.

        Args:
            input_ids: int64 [B, T], each below `config.vocab_size`.

        Returns:
            Logits [B, T, V] in the model's dtype, or in the autocast dtype under autocast.
        """
        return F.linear(self.hidden(input_ids), self.head_weight)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Compute the normalized last hidden state, the input of the head: [B, T, hidden_size]."""
        cos, sin = self._rotary_tables(input_ids.shape[1], input_ids.device)
        hidden: Tensor = self.model(input_ids, cos, sin)
        return hidden

    def _rotary_tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, float32 [T, head_dim], kept for the longest T so far."""
        tables = self._rotary
        if tables is None or tables[0].shape[0] < length or tables[0].device != device:
            positions = torch.arange(length, dtype=torch.float32, device=device)
            angles = torch.outer(positions, rotary_frequencies(self.config).to(device))
            angles = torch.cat((angles, angles), dim=-1)
            self._rotary = tables = angles.cos(), angles.sin()
        return tables[0][:length], tables[1][:length]


class Body(nn.Module):
    """Everything but the head. It is a module of its own because transformers' names start with `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Compute the normalized last hidden state [B, T, hidden_size] of ids [B, T]."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class Layer(nn.Module):
    """Attention and MLP, each applied to the normalized residual stream and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Attention(nn.Module):
    """Causal grouped-query attention with rotary position embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same shape. A position sees itself and the positions before it."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # With enable_gqa, k and v are not repeated in memory for each head of their group.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to [B, heads, T, head_dim], where element i pairs with i + head_dim / 2.

    The computation is in float32 and rounded once, because a cosine in bfloat16 is off by up to 0.4 %.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Return theta^(-2i / head_dim) with Llama 3's scaling, radians per position: float32 [head_dim / 2]."""
    # The same operations as in transformers, so that both round alike.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    # Frequencies with long waves are divided by `factor`, short waves stay, and in between it is interpolated
    # (https://arxiv.org/abs/2407.21783; transformers calls it llama3).
    turns = scaling.original_max_position_embeddings / wavelengths
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies

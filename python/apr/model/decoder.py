"""The decoder: one module for every family, with transformers' parameter names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apr.container.load import load
from apr.container.writer import Writer
from apr.errors import about
from apr.model.attention import attend
from apr.model.config import ModelConfig
from apr.model.families import FAMILIES
from apr.model.fill import fill
from apr.model.match import has_head
from apr.model.metadata import carried_metadata
from apr.model.names import check_layers
from apr.model.positions import View, views
from apr.model.rotary import rotate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from apr.model.cache import CapturedCache, KvCache
    from apr.model.families import Activation
    from apr.model.layers import LayerKind

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class Decoder(nn.Module):
    """A causal language model of one of the families in `apr.model.families`.

    A tied head has no parameter of its own: `model.embed_tokens.weight` is used twice. `from_apr` loads a
    model from a file; `empty` creates one without values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._carried, _ = carried_metadata({})
        self.model = Body(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # By length and device. Not buffers, which `to(dtype)` would round to bfloat16 and `to_empty` would
        # leave without values.
        self._views: dict[tuple[int, torch.device], dict[LayerKind, View]] = {}
        self._trained: set[tuple[int, torch.device]] = set()

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
            RefusedError: the metadata do not describe a supported decoder.
            WeightsError: the tensors do not match the model or are not trained weights; the message names
                them.
        """
        with load(path) as file, about(file.path):
            config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
            check_layers(file.path, config, len(file))
            model = cls.empty(config, device, dtype)
            fill(config, model.named_parameters(), file)
            about_model, about_tokenizer = carried_metadata(file.metadata)
            model._carried = about_model | about_tokenizer  # noqa: SLF001 (an instance of this class)
        return model

    def save_apr(self, path: str | PathLike[str], metadata: Mapping[str, object] | None = None) -> None:
        """Write the model to a file that `from_apr` and all commands read, as training writes its weights.

        The file has the configuration, the parameters in their dtypes, and what `from_apr` found: the
        tokenizer, the chat template, name and license. It appears whole or not at all, and an existing one is
        replaced. The same model writes the same bytes.

        Args:
            path: the .apr file.
            metadata: more metadata, which replace those of the same names.

        Raises:
            TypeError, ValueError: metadata that JSON cannot represent.
            OSError: the file cannot be written; an existing one is unchanged.
        """
        parameters = {name.replace("_orig_mod.", ""): value for name, value in self.named_parameters()}
        written = {
            "model_type": self.config.family,
            "param_count": sum(parameter.numel() for parameter in parameters.values()),
            **self.config.to_metadata(),
            **self._carried,
            **(metadata or {}),
        }
        with Writer(path, written) as writer:
            for name, parameter in parameters.items():
                writer.add(name, parameter.detach())

    @classmethod
    def empty(cls, config: ModelConfig, device: str | torch.device, dtype: torch.dtype) -> Self:
        """Create a model whose parameters have memory on `device` but no values yet."""
        # On the meta device nothing is allocated or drawn. torch's own initialization would draw 494 M random
        # numbers for Qwen2.5-0.5B, only for the file to replace them.
        with torch.device("meta"):
            model = cls(config)
        # Not to_empty, which loads SymPy.
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                values = torch.empty(parameter.shape, device=device, dtype=dtype)
                setattr(module, name, nn.Parameter(values))
        return model

    @property
    def head_weight(self) -> Tensor:
        """The output projection: [V, hidden_size]."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, cache: KvCache | CapturedCache | None = None) -> Tensor:
        """Compute the logits of the next token at each position.

        Args:
            input_ids: int64 [B, T], each below `config.vocab_size`.
            cache: keys and values of the positions before these; the new ones are appended.

        Returns:
            Logits [B, T, V] in the model's dtype, or in the autocast dtype under autocast.
        """
        return self.logits(self.hidden(input_ids, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [..., V] from what `hidden` returns."""
        return softcapped(F.linear(hidden, self.head_weight), self.config.final_softcap)

    def hidden(self, input_ids: Tensor, cache: KvCache | CapturedCache | None = None) -> Tensor:
        """Compute the input of the head, the normalized last hidden state: [B, T, hidden_size]."""
        length, device = input_ids.shape[1], input_ids.device
        kinds = self._kept_views(length, device) if cache is None else cache.views(length)
        hidden: Tensor = self.model(input_ids, [kinds[kind] for kind in self.config.layers], cache)
        if cache is not None:
            cache.length += length
        # Granite divides logits. Here it is done before the head: training never holds all logits at once.
        return hidden if self.config.logits_divisor == 1 else hidden / self.config.logits_divisor

    def _kept_views(self, length: int, device: torch.device) -> dict[LayerKind, View]:
        key = length, device
        if key not in self._views:
            # A captured graph of a training step keeps reading its views. Of other lengths, which differ
            # with every prompt, only the last is kept.
            kept = {shape: view for shape, view in self._views.items() if shape in self._trained}
            self._views = {**kept, key: views(self.config.layers, 0, length, device)}
        if torch.is_grad_enabled():
            self._trained.add(key)
        return self._views[key]


class Body(nn.Module):
    """Everything but the head. It is a module of its own because transformers' names start with `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = norm(config, config.hidden_size)
        self.recomputes = False
        """Keep only each layer's input for the backward pass, which computes the layer again."""
        self._multiplier = config.embedding_multiplier
        self._rounds_multiplier = FAMILIES[config.family].scaled_embedding

    def forward(
        self, input_ids: Tensor, views: list[View], cache: KvCache | CapturedCache | None = None
    ) -> Tensor:
        """Compute the normalized last hidden state [B, T, hidden_size] of ids [B, T]."""
        x = self.embedded(input_ids)
        recomputes = self.recomputes and torch.is_grad_enabled()
        for layer, view in zip(self.layers, views, strict=True):
            if recomputes:
                # No layer draws random numbers, so that the generators' states need not be kept.
                x = checkpoint(layer, x, view, cache, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, view, cache)
        out: Tensor = self.norm(x)
        return out

    def embedded(self, input_ids: Tensor) -> Tensor:
        """Return the rows of the embedding for ids of any shape, times the family's multiplier."""
        x: Tensor = self.embed_tokens(input_ids)
        if self._multiplier == 1:
            return x
        # Gemma was trained with sqrt(hidden_size) in bfloat16: 50.75 for 2560, not 50.6.
        rounded = torch.tensor(self._multiplier, dtype=x.dtype).item()
        return x * (rounded if self._rounds_multiplier else self._multiplier)


class Layer(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before them, after them or both."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        names = self.norms = config.norms
        # In the order of the forward pass, in which weights are drawn and checkpoints store optimizer state.
        self._add_norm(names.before_attention, config)
        self.self_attn = Attention(config, index)
        self._add_norm(names.after_attention, config)
        self._add_norm(names.before_mlp, config)
        self.mlp = Mlp(config)
        self._add_norm(names.after_mlp, config)
        self._multiplier = config.residual_multiplier

    def forward(self, x: Tensor, view: View, cache: KvCache | CapturedCache | None = None) -> Tensor:
        """Map [B, T, hidden_size] to the same shape."""
        names = self.norms
        attended = self.self_attn(self._normed(names.before_attention, x), view, cache)
        x = self._added(x, self._normed(names.after_attention, attended))
        return self._added(x, self._normed(names.after_mlp, self.mlp(self._normed(names.before_mlp, x))))

    def _add_norm(self, name: str | None, config: ModelConfig) -> None:
        if name is not None:
            self.add_module(name, norm(config, config.hidden_size))

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        out: Tensor = x if name is None else getattr(self, name)(x)
        return out

    def _added(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + (branch if self._multiplier == 1 else branch * self._multiplier)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary position embeddings."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self._index = index
        self._head_dim = config.head_dim
        self._rope = config.layers[index].rope
        self._scale, self._softcap = config.attention_scale, config.attention_softcap
        self._qk_norm = config.qk_norm
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        if config.qk_norm is not None:
            by_head = config.qk_norm == "head"
            self.q_norm = norm(config, config.head_dim if by_head else width)
            self.k_norm = norm(config, config.head_dim if by_head else kv_width)

    def forward(self, x: Tensor, view: View, cache: KvCache | CapturedCache | None = None) -> Tensor:
        """Map [B, T, hidden_size] to the same shape. A position sees itself and positions before it."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self._qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (-1, self._head_dim)) for part in (q, k, v))
        if self._qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self._rope is not None and view.cos is not None and view.sin is not None:
            q, k = (rotate(part, view.cos, view.sin, interleaved=self._rope.interleaved) for part in (q, k))
        if cache is not None:
            k, v = cache.append(self._index, k, v)
            if view.last is not None:
                k, v = k[:, :, -view.last :], v[:, :, -view.last :]
        mixed = attend(q, k, v, view.mask, self._scale, self._softcap)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """A gated MLP: down(act(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, hidden_size] to the same shape."""
        out: Tensor = self.down_proj(self._activation(self.gate_proj(x)) * self.up_proj(x))
        return out


def _embedding(vocab_size: int, hidden_size: int) -> nn.Embedding:
    """Create an embedding; on the meta device without drawing values that nobody will see."""
    # There, drawing normal numbers loads SymPy and torch's compiler: 4 s of CPU time in each process.
    weight = torch.empty(vocab_size, hidden_size)
    return nn.Embedding(vocab_size, hidden_size, _weight=weight if weight.is_meta else None)


class Float32Norm(nn.Module):
    """An RMSNorm that applies its weight, plus an offset, in float32 and rounds once."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self._eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of [..., width]."""
        weight = self.weight.float() + self.offset
        return F.rms_norm(x.float(), weight.shape, weight, self._eps).to(x.dtype)


def norm(config: ModelConfig, width: int) -> nn.Module:
    """Create a norm of the family's kind."""
    if config.norm_kind == "plain":
        return nn.RMSNorm(width, eps=config.rms_norm_eps)
    return Float32Norm(width, config.rms_norm_eps, 1.0 if config.norm_kind == "one-plus" else 0.0)


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(x / cap), or `x` without a cap (https://arxiv.org/abs/2408.00118, section 2)."""
    return x if cap is None else cap * torch.tanh(x / cap)


def softcap_slope(capped: Tensor, cap: float) -> Tensor:
    """Return the derivative of `softcapped` where it gave these values: 1 - tanh(x / cap)^2."""
    return 1 - (capped / cap).square()

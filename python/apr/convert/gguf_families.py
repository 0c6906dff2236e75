"""What llama.cpp calls each family, the keys that describe a model to it, and what it cannot run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr.errors import RefusedError
from apr.gguf.metadata import (
    ATTENTION_FACTOR,
    HIGH_FACTOR,
    LOW_FACTOR,
    ORIGINAL_CONTEXT,
    YARN_BETAS,
    llama3_factors,
)
from apr.gguf.reader import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from apr.gguf.rope_formulas import yarn_attention_factor
from apr.model.families import FAMILIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr.model.config import ModelConfig
    from apr.model.rope import Rope, RopeScaling


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What llama.cpp's code for an architecture can compute."""

    biases: Literal["none", "qkv", "qkvo"] = "none"
    windows: bool = False
    """Whether every n-th layer may attend to all positions and the others to a window."""
    scalings: frozenset[str] = frozenset({"linear", "yarn"})
    """The kinds of rotary scaling."""
    wide_heads: bool = True
    """Whether the heads together may be wider than the hidden state."""
    untied: bool = True
    """Whether the head may be a tensor of its own."""
    big: int = 0
    """The number of layers of the model whose queries are scaled by hidden_size / num_heads (Gemma)."""


_WITH_FACTORS = frozenset({"linear", "yarn", "llama3"})
# By GGUF architecture, read in llama.cpp's src/models/ in the version of xllamacpp 2026.10.
_LIMITS = {
    "llama": _Limits(biases="qkvo", scalings=_WITH_FACTORS),
    "qwen2": _Limits(biases="qkv"),
    "qwen3": _Limits(),
    "smollm3": _Limits(),
    "olmo2": _Limits(windows=True, wide_heads=False),
    "gemma2": _Limits(windows=True, untied=False, big=46),
    "gemma3": _Limits(windows=True, big=62),
    "granite": _Limits(biases="qkvo", scalings=_WITH_FACTORS),
    "phi3": _Limits(scalings=frozenset({"longrope"}), wide_heads=False),
    "exaone4": _Limits(windows=True, scalings=_WITH_FACTORS),
    "glm4": _Limits(biases="qkv"),
}
# SmolLM3: every n-th layer has no rotary positions.
_NO_ROPE_PERIOD = 4
# EXAONE 4: llama.cpp goes by the number of layers, and not by a key, to decide whether there are windows.
_EXAONE_WINDOWED = 64


def architecture_keys(config: ModelConfig) -> tuple[dict[str, object], list[str]]:
    """Return the keys of a model, without the architecture's name in front, and notes for the user.

    Raises:
        RefusedError: llama.cpp would compute something else.
    """
    name = FAMILIES[config.family].gguf
    limits = _LIMITS[name]
    problem = _problem(config, name, limits)
    if problem is not None:
        raise RefusedError(
            f"llama.cpp cannot compute this {config.family} model: {problem}; choose a directory as the "
            "target, for transformers"
        )
    rope = _full_rope(config)
    keys: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": rope.dim,
        "rope.freq_base": rope.theta,
        **_scaling_keys(rope.scaling),
    }
    notes = []
    window = next((layer.window for layer in config.layers if layer.window is not None), None)
    if window is not None and limits.windows:
        keys["attention.sliding_window"] = window
        keys["attention.sliding_window_pattern"] = _period(config)
        keys["rope.freq_base_swa"] = _sliding_theta(config)
    elif window is not None and window < config.max_position_embeddings:
        keys["context_length"] = window
        notes.append(
            f"the context in the GGUF file is {window} instead of {config.max_position_embeddings} tokens, "
            f"because llama.cpp has no sliding windows for {config.family}"
        )
    if name == "gemma2":
        keys["attn_logit_softcapping"] = config.attention_softcap
        keys["final_logit_softcapping"] = config.final_softcap
    if name == "granite":
        keys["attention.scale"] = config.attention_scale
        keys["embedding_scale"] = config.embedding_multiplier
        keys["residual_scale"] = config.residual_multiplier
        keys["logit_scale"] = config.logits_divisor
    return keys, notes


def rope_tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Return the divisors of rotary frequencies that GGUF stores as tensors: Llama 3's, and LongRoPE's."""
    rope = _full_rope(config)
    scaling = rope.scaling
    if scaling is not None and scaling.rope_type == "llama3":
        factors = llama3_factors(
            rope.theta,
            rope.dim,
            scaling.factor,
            scaling.low_freq_factor or 1.0,
            scaling.high_freq_factor or 1.0,
            scaling.original_max_position_embeddings or 1,
        )
        return {ROPE_FACTORS: factors}
    if scaling is not None and scaling.rope_type == "longrope":
        return {
            LONG_FACTORS: np.array(scaling.long_factor, np.float32),
            SHORT_FACTORS: np.array(scaling.short_factor, np.float32),
        }
    return {}


def _scaling_keys(scaling: RopeScaling | None) -> dict[str, object]:
    if scaling is None:
        return {}
    kind = scaling.rope_type
    keys: dict[str, Any] = {}
    if scaling.original_max_position_embeddings is not None:
        keys[ORIGINAL_CONTEXT] = scaling.original_max_position_embeddings
    if kind == "llama3":
        # llama.cpp needs only the factors in ROPE_FACTORS. From these, the parameters can be read back.
        return keys | {LOW_FACTOR: scaling.low_freq_factor, HIGH_FACTOR: scaling.high_freq_factor}
    keys["rope.scaling.type"] = kind
    if kind == "longrope":
        return keys | {ATTENTION_FACTOR: scaling.attention_factor}
    keys["rope.scaling.factor"] = scaling.factor
    if kind == "yarn":
        keys |= YARN_BETAS
        # llama.cpp multiplies YaRN's own factor by it.
        own = yarn_attention_factor(scaling.factor)
        if not math.isclose(scaling.attention_factor, own, rel_tol=1e-6):
            keys[ATTENTION_FACTOR] = scaling.attention_factor / own
    return keys


def _full_rope(config: ModelConfig) -> Rope:
    """Return the rotary positions of the layers that attend to all positions, or of all layers."""
    ropes = [(layer.window is not None, layer.rope) for layer in config.layers if layer.rope is not None]
    if not ropes:
        raise RefusedError("llama.cpp cannot compute a model without rotary positions in any layer")
    return min(ropes, key=lambda rope: rope[0])[1]


def _sliding_theta(config: ModelConfig) -> float:
    rope = next((layer.rope for layer in config.layers if layer.window is not None and layer.rope), None)
    return _full_rope(config).theta if rope is None else rope.theta


def _period(config: ModelConfig) -> int:
    """Return n where every n-th layer attends to all positions; 0 for another pattern."""
    full = [index for index, layer in enumerate(config.layers) if layer.window is None]
    period = full[0] + 1 if full else config.num_layers + 1
    expected = [index for index in range(config.num_layers) if (index + 1) % period == 0]
    return period if full == expected else 0


def _problem(config: ModelConfig, name: str, limits: _Limits) -> str | None:
    """Return what llama.cpp would compute differently, or None."""
    rope = _full_rope(config)
    scale = config.head_dim**-0.5
    if limits.big == config.num_layers:
        scale = (config.hidden_size // config.num_heads) ** -0.5
    windows = {layer.window for layer in config.layers if layer.window is not None}
    period = _period(config) if windows else 0
    flags = [layer.rope is not None for layer in config.layers]
    kind = None if rope.scaling is None else rope.scaling.rope_type
    sliding = {layer.rope for layer in config.layers if layer.window is not None and limits.windows}
    scaling = rope.scaling
    shown_scale = (
        "1 / sqrt(head_dim)" if limits.big != config.num_layers else "1 / sqrt(hidden_size / num_heads)"
    )
    problems = {
        "its attention has biases (attention_bias), and llama.cpp leaves them out": (
            config.qkv_bias and limits.biases == "none"
        )
        or (config.o_bias and limits.biases != "qkvo"),
        f"head_dim is {config.head_dim}, and llama.cpp needs hidden_size / num_heads": not limits.wide_heads
        and config.head_dim * config.num_heads != config.hidden_size,
        "its head has weights of its own (tie_word_embeddings is false), and llama.cpp uses the embedding": (
            not config.tie_word_embeddings and not limits.untied
        ),
        f"its positions are scaled by {kind} (rope_scaling), which llama.cpp does not have for it": (
            kind is not None and kind not in limits.scalings
        ),
        "its YaRN does not round to whole indices (truncate is false), and llama.cpp always does": kind
        == "yarn"
        and scaling is not None
        and scaling.truncate is False,
        "its YaRN has other bounds than beta_fast 32 and beta_slow 1, and llama.cpp always has these": (
            kind == "yarn"
            and scaling is not None
            and (scaling.beta_fast, scaling.beta_slow) != tuple(YARN_BETAS.values())
        ),
        f"its scores are scaled by {config.attention_scale:.4g}, and llama.cpp always scales them by "
        f"{shown_scale}, {scale:.4g}": name != "granite"
        and not math.isclose(config.attention_scale, scale, rel_tol=1e-6),
        "its full attention is not in every n-th layer (layer_types), and llama.cpp has no other pattern": (
            limits.windows and bool(windows) and not period
        ),
        _softcap("scores", "attn_logit_softcapping", config.attention_softcap): (
            (config.attention_softcap is None) == (name == "gemma2")
        ),
        _softcap("logits", "final_logit_softcapping", config.final_softcap): (
            (config.final_softcap is None) == (name == "gemma2")
        ),
        "it has no sliding windows (sliding_window), and llama.cpp always computes them": (
            name in {"gemma2", "gemma3"} and not windows
        ),
        f"it has {config.num_layers} layers and {'sliding' if windows else 'no'} windows, and llama.cpp "
        f"computes windows exactly in models of {_EXAONE_WINDOWED} layers": name == "exaone4"
        and bool(windows) != (config.num_layers == _EXAONE_WINDOWED),
        "its layers without positions are not every 4th one (no_rope_layers), as llama.cpp has them": (
            name == "smollm3"
            and flags != [(index + 1) % _NO_ROPE_PERIOD != 0 for index in range(config.num_layers)]
        ),
        "its layers with sliding windows have a rope_theta of their own, which llama.cpp does not have": (
            name == "olmo2" and _sliding_theta(config) != rope.theta
        ),
        "layers with sliding windows have scaled positions (rope_scaling), and llama.cpp has none there": (
            any(part is not None and part.scaling for part in sliding) and name in {"olmo2", "gemma3"}
        ),
    }
    return next((problem for problem, present in problems.items() if present), None)


def _softcap(what: str, key: str, cap: float | None) -> str:
    if cap is None:
        return f"its {what} have no softcap ({key} is null), and llama.cpp always computes one"
    return f"its {what} have a softcap ({key}), which llama.cpp does not have for it"

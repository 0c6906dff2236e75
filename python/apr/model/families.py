"""What the models of a family have in common. Everything else is in their configurations.

Read in transformers 5.24, `src/transformers/models/<model_type>/{configuration,modeling}_<model_type>.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Activation = Literal["silu", "gelu_pytorch_tanh"]
"""The function of the MLP's gate, as `hidden_act` of transformers names it."""
NormKind = Literal["plain", "float32-weight", "one-plus"]
"""How an RMSNorm applies its weight: after the cast to the input's dtype, in float32 before the cast, or as
1 + weight in float32."""
QkNorm = Literal["head", "projection"]
"""What the norms of queries and keys normalize: each head, or the whole projection before it is split."""


class Norms(NamedTuple):
    """The parameter names of a layer's norms, None where a family has no norm."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


_BEFORE = Norms("input_layernorm", None, "post_attention_layernorm", None)
_AFTER = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_GEMMA = Norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
_GLM4 = Norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of decoders, under its name in transformers (`model_type`)."""

    class_name: str
    """transformers' class."""
    gguf: str
    """The architecture's name in GGUF files."""
    norms: Norms = _BEFORE
    norm_kind: NormKind = "plain"
    qk_norm: QkNorm | None = None
    biases: Literal["none", "qkv", "qkvo", "always qkv"] = "none"
    """The attention projections that have biases if `attention_bias` is set; "always qkv" ignores the key."""
    activation: Activation = "silu"
    activation_key: str = "hidden_act"
    windows: Literal["none", "all", "upper", "pattern", "without rope"] = "none"
    """Which layers attend to a sliding window only: none; all, if `sliding_window` is set; those from
    `max_window_layers` on; all but every n-th; those without rotary positions. Where a family has several
    kinds of layers, `layer_types` comes first."""
    window_switch: bool = False
    """Whether windows need `use_sliding_window`."""
    full_every: int = 0
    """The n of the pattern: every n-th layer attends to all positions."""
    pattern_key: bool = False
    """Whether `sliding_window_pattern` replaces `full_every`."""
    rope_per_type: bool = False
    """Whether sliding layers have rotary positions of their own, without scaling."""
    no_rope: Literal["listed", "full"] | None = None
    """Which layers have no rotary positions: those in `no_rope_layers`, or those of full attention in a model
    that also has sliding windows."""
    fraction: bool = False
    """Whether `partial_rotary_factor` is supported."""
    interleaved: bool = False
    """Whether rotary positions pair neighbors instead of the two halves of a head."""
    multipliers: bool = False
    """Whether the configuration has Granite's four multipliers."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by sqrt(hidden_size), rounded to the weights' dtype."""
    query_scalar: bool = False
    """Whether scores are scaled by `query_pre_attn_scalar` instead of the head size."""
    attention_softcap: bool = False
    """Whether scores may have a softcap, `attn_logit_softcapping`. Without it, the key must be null."""
    final_softcap: bool = False
    """Whether logits may have a softcap, `final_logit_softcapping`."""
    fused: tuple[str, ...] = ()
    """The projections that transformers stores as one: "qkv_proj", "gate_up_proj"."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The values of transformers' class for keys that config.json lacks."""


def _defaults(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int | None,
    **others: Any,  # noqa: ANN401 (values of config.json)
) -> dict[str, Any]:  # fmt: skip
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    } | others


FAMILIES: dict[str, Family] = {
    "llama": Family(
        class_name="LlamaForCausalLM",
        gguf="llama",
        biases="qkvo",
        defaults=_defaults(32000, 4096, 11008, 32, 32, None),
    ),
    "qwen2": Family(
        class_name="Qwen2ForCausalLM",
        gguf="qwen2",
        biases="always qkv",
        windows="upper",
        window_switch=True,
        defaults=_defaults(
            151936, 4096, 22016, 32, 32, 32,
            max_position_embeddings=32768, sliding_window=4096, max_window_layers=28,
        ),
    ),
    "qwen3": Family(
        class_name="Qwen3ForCausalLM",
        gguf="qwen3",
        biases="qkvo",
        qk_norm="head",
        windows="upper",
        window_switch=True,
        defaults=_defaults(
            151936, 4096, 22016, 32, 32, 32,
            head_dim=128, max_position_embeddings=32768, sliding_window=4096, max_window_layers=28,
        ),
    ),
    "mistral": Family(
        class_name="MistralForCausalLM",
        gguf="llama",
        windows="all",
        defaults=_defaults(
            32000, 4096, 14336, 32, 32, 8, max_position_embeddings=131072, sliding_window=4096
        ),
    ),
    "smollm3": Family(
        class_name="SmolLM3ForCausalLM",
        gguf="smollm3",
        biases="qkvo",
        windows="without rope",
        no_rope="listed",
        window_switch=True,
        defaults=_defaults(
            128256, 2048, 11008, 36, 16, 4,
            max_position_embeddings=32768, rope_theta=2e6, tie_word_embeddings=True, no_rope_layer_interval=4,
        ),
    ),
    "olmo2": Family(
        class_name="Olmo2ForCausalLM",
        gguf="olmo2",
        norms=_AFTER,
        norm_kind="float32-weight",
        qk_norm="projection",
        biases="qkvo",
        defaults=_defaults(50304, 4096, 11008, 32, 32, None, rms_norm_eps=1e-5),
    ),
    "olmo3": Family(
        class_name="Olmo3ForCausalLM",
        gguf="olmo2",
        norms=_AFTER,
        norm_kind="float32-weight",
        qk_norm="projection",
        biases="qkvo",
        windows="pattern",
        full_every=4,
        rope_per_type=True,
        defaults=_defaults(
            50304, 4096, 11008, 32, 32, None, rms_norm_eps=1e-5, rope_theta=5e5, sliding_window=4096,
            # transformers 5 gives sliding layers its default, whatever rope_theta beside them says.
            rope_local_base_freq=5e5,
        ),
    ),
    "gemma2": Family(
        class_name="Gemma2ForCausalLM",
        gguf="gemma2",
        norms=_GEMMA,
        norm_kind="one-plus",
        biases="qkvo",
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        windows="pattern",
        full_every=2,
        scaled_embedding=True,
        query_scalar=True,
        attention_softcap=True,
        final_softcap=True,
        defaults=_defaults(
            256000, 2304, 9216, 26, 8, 4,
            head_dim=256, max_position_embeddings=8192, tie_word_embeddings=True,
            query_pre_attn_scalar=256, sliding_window=4096, attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
        ),
    ),
    "gemma3_text": Family(
        class_name="Gemma3ForCausalLM",
        gguf="gemma3",
        norms=_GEMMA,
        norm_kind="one-plus",
        qk_norm="head",
        biases="qkvo",
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        windows="pattern",
        full_every=6,
        pattern_key=True,
        rope_per_type=True,
        scaled_embedding=True,
        query_scalar=True,
        final_softcap=True,
        defaults=_defaults(
            262208, 2304, 9216, 26, 8, 4, head_dim=256, max_position_embeddings=131072,
            tie_word_embeddings=True, query_pre_attn_scalar=256, sliding_window=4096, rope_theta=1e6,
            rope_local_base_freq=10000.0,
        ),
    ),
    "granite": Family(
        class_name="GraniteForCausalLM",
        gguf="granite",
        biases="qkvo",
        multipliers=True,
        defaults=_defaults(
            32000, 4096, 11008, 32, 32, None,
            embedding_multiplier=1.0, attention_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0,
        ),
    ),
    "phi3": Family(
        class_name="Phi3ForCausalLM",
        gguf="phi3",
        windows="all",
        fraction=True,
        fused=("qkv_proj", "gate_up_proj"),
        defaults=_defaults(
            32064, 3072, 8192, 32, 32, None,
            max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5,
        ),
    ),
    "exaone4": Family(
        class_name="Exaone4ForCausalLM",
        gguf="exaone4",
        norms=_AFTER,
        qk_norm="head",
        windows="pattern",
        no_rope="full",
        full_every=4,
        pattern_key=True,
        defaults=_defaults(102400, 4096, 16384, 32, 32, 32, rms_norm_eps=1e-5, sliding_window=4096),
    ),
    "glm4": Family(
        class_name="Glm4ForCausalLM",
        gguf="glm4",
        norms=_GLM4,
        biases="qkv",
        fraction=True,
        interleaved=True,
        fused=("gate_up_proj",),
        defaults=_defaults(
            151552, 4096, 13696, 40, 32, 2, head_dim=128, max_position_embeddings=131072,
            rms_norm_eps=1.5625e-07, attention_bias=True, partial_rotary_factor=0.5,
        ),
    ),
}  # fmt: skip

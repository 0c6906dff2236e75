"""The configuration of a decoder, read from a file's metadata without silent defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from apr.container.metadata import HF_CONFIG
from apr.errors import RefusedError
from apr.gguf.rope_formulas import rotary_fraction
from apr.model.families import FAMILIES, Activation, Family, NormKind, Norms, QkNorm
from apr.model.layers import FULL, SLIDING, LayerKind, read_layers
from apr.model.metadata import canonical, check_positive, integer, number, positive, switch

if TYPE_CHECKING:
    from collections.abc import Mapping

# Metadata name a family by transformers' `model_type` or by its class; compared in lower case.
_NAMES = {name: name for name in FAMILIES} | {
    family.class_name.lower(): name for name, family in FAMILIES.items()
}
# Parts of names, with what they mean. They decide only the wording: what is not in _NAMES is refused anyway.
_KINDS = {
    "an encoder": ("bert", "roberta", "electra", "mpnet", "albert"),
    "an encoder and decoder": ("t5", "bart", "whisper"),
    "a model with other layers than attention": (
        "mamba", "rwkv", "hybrid", "jamba", "bamba", "zamba", "lfm2", "falcon_h1", "nemotron_h", "qwen3_next",
        "qwen3_5",
    ),
    "a mixture of experts": ("moe", "mixtral", "deepseek", "gpt_oss", "dbrx"),
    "a multimodal model": ("clip", "vit", "vl", "vision", "llava", "omni", "conditionalgeneration"),
}  # fmt: skip
# Multimodal wrappers and the family of their text part.
_TEXT_PARTS = {"gemma3": "gemma3_text", "gemma3forconditionalgeneration": "gemma3_text"}
# In this order, because older writers set `architecture` to LlamaForCausalLM for every model.
_FAMILY_KEYS = ("hf_model_type", "hf_architecture", "architecture", "model_type")
# Values that writers use when they do not know the family.
_PLACEHOLDERS = {"", "auto", "unknown", "transformer_lm"}

_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that determines a decoder's parameters and its forward pass.

    Sizes have the names of the metadata keys and are numbers of elements.
    """

    family: str
    """A key of `apr.model.families.FAMILIES`."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    layers: tuple[LayerKind, ...]
    """The kind of each layer."""
    qkv_bias: bool = False
    o_bias: bool = False
    attention_scale: float
    """The factor of the scores, before a softcap."""
    attention_softcap: float | None = None
    """Scores become cap * tanh(score / cap)."""
    final_softcap: float | None = None
    """The same for logits."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """The factor of what attention and MLP add to the residual stream."""
    logits_divisor: float = 1.0

    def __post_init__(self) -> None:
        for key in (*_INTEGERS, "head_dim"):
            if getattr(self, key) < 1:
                raise RefusedError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise RefusedError(
                f"num_heads is {self.num_heads}, which is not a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        for layer in self.layers:
            if layer.rope is not None and (layer.rope.dim % 2 or layer.rope.dim < 2):
                # Rotary embeddings rotate pairs of elements.
                what = "head_dim" if layer.rope.dim == self.head_dim else "the rotated part of head_dim"
                raise RefusedError(f"{what} is {layer.rope.dim}; it must be even")
        for key in ("rms_norm_eps", "attention_scale", "embedding_multiplier", "residual_multiplier"):
            check_positive(key, getattr(self, key))
        for key in ("attention_softcap", "final_softcap", "logits_divisor"):
            if getattr(self, key) is not None:
                check_positive(key, getattr(self, key))

    @property
    def norms(self) -> Norms:
        """The names of a layer's norms."""
        return FAMILIES[self.family].norms

    @property
    def norm_kind(self) -> NormKind:
        """How norms apply their weights."""
        return FAMILIES[self.family].norm_kind

    @property
    def qk_norm(self) -> QkNorm | None:
        """What the norms of queries and keys normalize; None without such norms."""
        return FAMILIES[self.family].qk_norm

    @property
    def activation(self) -> Activation:
        """The function of the MLP's gate."""
        return FAMILIES[self.family].activation

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, head_present: bool | None = None) -> ModelConfig:
        """Read the configuration from the metadata of an `.apr` file.

        Args:
            metadata: keys in any of the known spellings.
            head_present: whether the file has a non-empty `lm_head.weight` or `output.weight`. If the
                metadata do not contain `tie_word_embeddings`, the head is tied if this is False.

        Raises:
            RefusedError: the model is not a supported decoder, has a feature that is not supported,
                lacks a size, or two spellings contradict each other.
        """
        kept = metadata.get(HF_CONFIG)
        if isinstance(kept, dict):
            # What other model the tensors belong to, if they do: the sizes alone may look like a decoder's.
            cls.from_hf(kept, head_present=head_present)
        return cls._from_facts(canonical(metadata), head_present=head_present)

    @classmethod
    def _from_facts(cls, facts: dict[str, Any], *, head_present: bool | None) -> ModelConfig:
        name = _family(facts)
        family = FAMILIES[name]
        _refuse_features(facts, family)
        if missing := missing_keys(facts, tied=head_present is not None):
            *others, last = missing
            listed = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
            raise RefusedError(f"the metadata has no {listed} needed to build the model")
        numbers = {key: integer(facts, key) for key in _INTEGERS}
        head_dim = integer(facts, "head_dim") if "head_dim" in facts else _default_head_dim(numbers)
        bias = family.biases == "always qkv" or (family.biases != "none" and switch(facts, "attention_bias"))
        switches: dict[str, Any] = {}
        if family.attention_softcap:
            switches["attention_softcap"] = _optional(facts, "attn_logit_softcapping")
        if family.final_softcap:
            switches["final_softcap"] = _optional(facts, "final_logit_softcapping")
        if family.scaled_embedding:
            switches["embedding_multiplier"] = numbers["hidden_size"] ** 0.5
        scale = head_dim**-0.5
        if family.query_scalar:
            scale = positive(facts, "query_pre_attn_scalar") ** -0.5
        if family.multipliers:
            scale = positive(facts, "attention_multiplier")
            switches["embedding_multiplier"] = positive(facts, "embedding_multiplier")
            switches["residual_multiplier"] = positive(facts, "residual_multiplier")
            switches["logits_divisor"] = positive(facts, "logits_scaling")
        return cls(
            family=name,
            **numbers,
            head_dim=head_dim,
            rms_norm_eps=number(facts, "rms_norm_eps"),
            tie_word_embeddings=_tied(facts, head_present=head_present),
            layers=read_layers(facts, family, numbers, head_dim),
            # The tensors of a file never decide this. A public trainer saved Qwen2.5-0.5B without its 72
            # biases, and a loader that believes such a file trains another model.
            qkv_bias=bias,
            o_bias=bias and family.biases == "qkvo",
            attention_scale=scale,
            **switches,
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, head_present: bool | None = None) -> ModelConfig:
        """Read the configuration from transformers' config.json. Missing keys have the defaults of its class.

        Args:
            config: the contents of config.json.
            head_present: as in `from_metadata`.

        Raises:
            RefusedError: as `from_metadata`.
        """
        family = FAMILIES[_family(canonical(config))]
        _refuse_other_tensors(config, family)
        filled = {**family.defaults, **config}
        if isinstance(config.get("rope_parameters"), dict) and "rope_theta" not in config:
            for key in ("rope_theta", "rope_local_base_freq"):
                filled.pop(key, None)
            filled["rope_parameters"] = _with_default_thetas(config["rope_parameters"], family)
        # transformers' rule for a null.
        if filled.get("num_key_value_heads") is None:
            filled["num_key_value_heads"] = filled.get("num_attention_heads")
        if filled["tie_word_embeddings"] is None:
            raise RefusedError("tie_word_embeddings is null; it must be true or false")
        return cls._from_facts(canonical(filled), head_present=head_present)

    def to_metadata(self) -> dict[str, Any]:
        """Return metadata from which `from_metadata` restores an equal configuration."""
        # One spelling of each size. A public runtime drops all metadata if a key and its alias are both
        # there.
        return {
            "architecture": self.family,
            "hf_architecture": FAMILIES[self.family].class_name,
            "hf_model_type": self.family,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            # The ecosystem's numbers: 2 for pairs (i, i + head_dim / 2), 0 for pairs of neighbors.
            "rope_type": 0 if FAMILIES[self.family].interleaved else 2,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            **self.switches(),
        }

    def switches(self) -> dict[str, Any]:
        """Return what the metadata and transformers' config.json spell alike: all but names and sizes."""
        family = FAMILIES[self.family]
        result: dict[str, Any] = {}
        if family.biases in {"qkv", "qkvo"}:
            result["attention_bias"] = self.qkv_bias
        if family.query_scalar:
            scalar = self.attention_scale**-2
            # Whole in published models. The inverse of the square root is not exact.
            result["query_pre_attn_scalar"] = (
                round(scalar) if round(scalar) ** -0.5 == self.attention_scale else scalar
            )
        if family.attention_softcap:
            result["attn_logit_softcapping"] = self.attention_softcap
        if family.final_softcap:
            result["final_logit_softcapping"] = self.final_softcap
        if family.multipliers:
            result["attention_multiplier"] = self.attention_scale
            result["embedding_multiplier"] = self.embedding_multiplier
            result["residual_multiplier"] = self.residual_multiplier
            result["logits_scaling"] = self.logits_divisor
        if family.activation != "silu":
            result[family.activation_key] = family.activation
        return result | self._rope_facts(family) | self._window_facts(family)

    def _window_facts(self, family: Family) -> dict[str, Any]:
        if family.windows == "none":
            return {}
        window = next((kind.window for kind in self.layers if kind.window is not None), None)
        result: dict[str, Any] = {"sliding_window": window}
        if family.window_switch:
            result["use_sliding_window"] = window is not None
        if family.windows == "without rope":
            result["no_rope_layers"] = [int(kind.rope is not None) for kind in self.layers]
        if family.windows == "pattern" or (family.windows != "all" and window is not None):
            result["layer_types"] = [FULL if kind.window is None else SLIDING for kind in self.layers]
        return result if window is not None or family.windows != "upper" else {}

    def _rope_facts(self, family: Family) -> dict[str, Any]:
        ropes = {
            (FULL if kind.window is None else SLIDING): kind.rope
            for kind in self.layers
            if kind.rope is not None
        }
        rope = ropes.get(FULL) or ropes.get(SLIDING)
        if rope is None:
            return {}
        result: dict[str, Any] = {"rope_theta": rope.theta}
        if family.fraction:
            result["partial_rotary_factor"] = rotary_fraction(rope.dim, self.head_dim)
        if rope.scaling is not None:
            result["rope_scaling"] = rope.scaling.to_metadata()
        if self.family == "phi3" and rope.scaling is not None:
            # transformers reads Phi-3's from here, and takes 4096 if it is missing.
            result["original_max_position_embeddings"] = rope.scaling.original_max_position_embeddings
        if family.rope_per_type:
            # As transformers 5 has it. Older versions read the keys above, and for Gemma the local theta.
            result["rope_parameters"] = {
                kind: {"rope_theta": part.theta}
                | ({"rope_type": "default"} if part.scaling is None else part.scaling.to_metadata())
                for kind, part in ropes.items()
            }
            if "rope_local_base_freq" in family.defaults and SLIDING in ropes:
                result["rope_local_base_freq"] = ropes[SLIDING].theta
        return result


def _with_default_thetas(parameters: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return `rope_parameters` with the class's theta where config.json has none."""
    defaults = {FULL: family.defaults["rope_theta"]}
    defaults[SLIDING] = family.defaults.get("rope_local_base_freq", defaults[FULL])
    if not family.rope_per_type:
        return {"rope_theta": defaults[FULL], **parameters}
    # What is not an object is left to `from_metadata` to refuse.
    parts = {kind: {"rope_theta": theta} for kind, theta in defaults.items()}
    return {
        **parameters,
        **{
            kind: {**part, **given} if isinstance(given := parameters.get(kind) or {}, dict) else given
            for kind, part in parts.items()
        },
    }


def missing_keys(facts: Mapping[str, Any], *, tied: bool = False) -> list[str]:
    """Return the keys that a model needs and that facts, in apr's spelling, lack.

    Args:
        facts: what `canonical` returns.
        tied: whether something else decides if the head is tied.
    """
    named = names_family(facts)
    family = FAMILIES[_family(dict(facts))] if named else None
    needed = [*_INTEGERS, "rms_norm_eps"]
    # Rotary parameters have several places, which `read_layers` reads.
    if not isinstance(facts.get("rope_parameters"), dict) and facts.get("model.rope_theta") is None:
        needed.append("rope_theta")
    if not tied:
        needed.append("tie_word_embeddings")
    if family is not None and family.query_scalar:
        needed.append("query_pre_attn_scalar")
    if family is not None and family.multipliers:
        needed += ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"]
    missing = [key for key in needed if facts.get(key) is None]
    return missing if named else ["architecture", *missing]


def names_family(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata name an architecture, supported or not."""
    return any(_is_name(metadata.get(key)) for key in _FAMILY_KEYS)


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.lower() not in _PLACEHOLDERS


def _family(facts: dict[str, Any]) -> str:
    for key in _FAMILY_KEYS:
        value = facts.get(key)
        if not _is_name(value):
            continue
        family = _NAMES.get(value.lower())
        if family is not None:
            return family
        part = facts.get("text_config")
        text_part = part.get("model_type") if isinstance(part, dict) else _TEXT_PARTS.get(value.lower())
        if text_part in FAMILIES:
            raise RefusedError(
                f"{key} is {value!r}, a multimodal model; apr supports only its text part, {text_part}"
            )
        kind = next(
            (kind for kind, parts in _KINDS.items() if any(part in value.lower() for part in parts)), None
        )
        if any(facts.get(name) is not None for name in ("text_config", "vision_config", "audio_config")):
            kind = "a multimodal model"
        what = f"is {kind}" if kind else "is not supported"
        raise RefusedError(f"{key} is {value!r}, which {what}; supported decoders: {', '.join(FAMILIES)}")
    raise RefusedError(f"the metadata has no architecture; set one of {', '.join(_FAMILY_KEYS)}")


def _refuse_other_tensors(config: Mapping[str, Any], family: Family) -> None:
    """Refuse a config.json of a decoder whose tensors are others: of another class, or quantized."""
    classes = config.get("architectures")
    class_name = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(class_name, str) and class_name != family.class_name:
        raise RefusedError(f"the model is a {class_name}, not a {family.class_name}")
    if config.get("quantization_config") is not None:
        raise RefusedError("config.json has a quantization_config")


def _refuse_features(facts: dict[str, Any], family: Family) -> None:
    activation = facts.get(family.activation_key, family.activation)
    if activation == "swish":
        activation = "silu"  # two names of one function
    # GGUF calls Mistral llama; and a window has no switch in either.
    sliding = family is FAMILIES["llama"] and facts.get("sliding_window")
    features = {
        "mlp_bias": facts.get("mlp_bias"),
        "sliding-window attention": sliding,
        "a softcap of scores (attn_logit_softcapping)": not family.attention_softcap
        and facts.get("attn_logit_softcapping"),
        "mixture of experts (num_experts)": facts.get("num_experts") or facts.get("num_local_experts"),
        "bidirectional attention (use_bidirectional_attention)": facts.get("use_bidirectional_attention"),
        f"{family.activation_key} {activation!r}": activation != family.activation,
        "partial rotary embeddings (partial_rotary_factor)": not family.fraction
        and any(
            isinstance(part, dict) and part.get("partial_rotary_factor", 1) != 1
            for part in (facts, facts.get("rope_parameters"), facts.get("rope_scaling"))
        ),
    }
    for feature, present in features.items():
        if present:
            raise RefusedError(f"the model has {feature}, which is not supported")


def _default_head_dim(numbers: dict[str, int]) -> int:
    hidden, heads = numbers["hidden_size"], numbers["num_heads"]
    if heads < 1 or hidden % heads:
        raise RefusedError(
            f"hidden_size is {hidden}, which is not a multiple of num_heads, {heads}, and head_dim is missing"
        )
    return hidden // heads


def _optional(facts: dict[str, Any], key: str) -> float | None:
    return None if facts.get(key) is None else positive(facts, key)


def _tied(facts: dict[str, Any], *, head_present: bool | None) -> bool:
    value = facts.get("tie_word_embeddings")
    if isinstance(value, bool):
        return value
    if value is not None:
        raise RefusedError(f"tie_word_embeddings is {value!r}; it must be true or false")
    # Without the key, a model is tied exactly if its file stores no head.
    if head_present is None:
        raise RefusedError("the metadata has no tie_word_embeddings, which is needed to build the model")
    return not head_present

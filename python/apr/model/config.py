"""The configuration of a decoder, read from a file's metadata without silent defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from apr.errors import RefusedError
from apr.model.metadata import canonical, same_value

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["llama", "qwen2"]

# In lower case. Metadata name a family by transformers' `model_type` or by its class.
_FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "llamaforcausallm": "llama",
    "qwen2": "qwen2",
    "qwen2forcausallm": "qwen2",
}
_CLASSES: dict[Family, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Parts of names. They decide only the wording: what is not in _FAMILIES is refused in any case.
_ENCODERS = (
    "bert",
    "roberta",
    "electra",
    "mpnet",
    "deberta",
    "albert",
    "t5",
    "bart",
    "whisper",
    "clip",
    "vit",
)
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


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies (https://arxiv.org/abs/2407.21783, transformers' `llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that determines a decoder's parameters and its forward pass.

    Fields have the names of the metadata keys. Sizes are numbers of elements. `attention_bias` gives a Llama
    biases on the q, k, v and o projections; a Qwen2 always has them on q, k and v.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for key in (*_INTEGERS, "head_dim"):
            if getattr(self, key) < 1:
                raise RefusedError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise RefusedError(
                f"num_heads is {self.num_heads}, which is not a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            # Rotary embeddings rotate pairs of elements.
            raise RefusedError(f"head_dim is {self.head_dim}; it must be even")
        for key in ("rope_theta", "rms_norm_eps"):
            # False for NaN too, which Python reads from JSON.
            if not 0 < getattr(self, key) < float("inf"):
                raise RefusedError(f"{key} is {getattr(self, key)}; it must be a positive, finite number")

    @property
    def qkv_bias(self) -> bool:
        """Whether the q, k and v projections have biases."""
        # The tensors of a file never decide this. A public trainer saved Qwen2.5-0.5B without its 72 biases,
        # and a loader that believes such a file trains another model.
        return self.family == "qwen2" or self.attention_bias

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, head_present: bool | None = None) -> ModelConfig:
        """Read the configuration from the metadata of an `.apr` file, or from transformers' config.json.

        Args:
            metadata: keys in any of the known spellings.
            head_present: whether the file has a non-empty `lm_head.weight` or `output.weight`. If the
                metadata do not contain `tie_word_embeddings`, the head is tied if this is False.

        Raises:
            RefusedError: the model is not a Llama or Qwen2 decoder, has a feature that is not supported,
                lacks a size, or two spellings contradict each other.
        """
        facts = canonical(metadata)
        family = _family(facts)
        _refuse_features(facts, family)
        numbers = {key: _integer(facts, key) for key in _INTEGERS}
        theta, scaling = _rope(facts)
        head_dim = _integer(facts, "head_dim") if "head_dim" in facts else _default_head_dim(numbers)
        return cls(
            family=family,
            **numbers,
            head_dim=head_dim,
            rope_theta=theta,
            rms_norm_eps=_number(facts, "rms_norm_eps"),
            tie_word_embeddings=_tied(facts, head_present=head_present),
            # The switch is Llama's alone. In Qwen2, q, k and v always have biases and o never has one.
            attention_bias=family == "llama" and facts.get("attention_bias") is True,
            rope_scaling=scaling,
        )

    def to_metadata(self) -> dict[str, Any]:
        """Return metadata from which `from_metadata` restores an equal configuration."""
        # One spelling of each size. A public runtime drops all metadata if a key and its alias are both
        # there.
        metadata: dict[str, Any] = {
            "architecture": self.family,
            "hf_architecture": _CLASSES[self.family],
            "hf_model_type": self.family,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_type": 2,  # the ecosystem's number for pairs (i, i + head_dim / 2)
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if self.family == "llama":
            metadata["attention_bias"] = self.attention_bias
        if self.rope_scaling is not None:
            scaling = self.rope_scaling
            metadata["rope_scaling"] = {
                "rope_type": "llama3",
                **{name: getattr(scaling, name) for name in scaling.__slots__},
            }
        return metadata


def names_family(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata name an architecture, supported or not."""
    return any(_is_name(metadata.get(key)) for key in _FAMILY_KEYS)


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.lower() not in _PLACEHOLDERS


def _family(facts: dict[str, Any]) -> Family:
    for key in _FAMILY_KEYS:
        value = facts.get(key)
        if not _is_name(value):
            continue
        family = _FAMILIES.get(value.lower())
        if family is not None:
            return family
        kind = "an encoder" if any(name in value.lower() for name in _ENCODERS) else "not supported"
        raise RefusedError(f"{key} is {value!r}, which is {kind}; apr supports Llama and Qwen2 decoders")
    raise RefusedError(f"the metadata has no architecture; set one of {', '.join(_FAMILY_KEYS)}")


def _refuse_features(facts: dict[str, Any], family: Family) -> None:
    # Qwen2's configurations contain a `sliding_window` that is off unless `use_sliding_window` is set.
    # Mistral, which GGUF files call llama, has no such switch: its window is on if it is there.
    sliding = facts.get("use_sliding_window") or (family == "llama" and facts.get("sliding_window"))
    layers = facts.get("layer_types")
    features = {
        "mlp_bias": facts.get("mlp_bias"),
        "sliding-window attention": sliding or (isinstance(layers, list) and "sliding_attention" in layers),
        "mixture of experts (num_experts)": facts.get("num_experts"),
        f"hidden_act {facts.get('hidden_act')!r}": facts.get("hidden_act", "silu") != "silu",
        "partial rotary embeddings (partial_rotary_factor)": any(
            isinstance(part, dict) and part.get("partial_rotary_factor", 1) != 1
            for part in (facts, facts.get("rope_parameters"), facts.get("rope_scaling"))
        ),
    }
    for feature, present in features.items():
        if present:
            raise RefusedError(f"the model has {feature}, which is not supported")


def _integer(facts: dict[str, Any], key: str) -> int:
    value = _fact(facts, key)
    # bool is a subclass of int, but true is not a size.
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError(f"{key} is {value!r}, which is not a whole number")
    return value


def _number(facts: dict[str, Any], key: str) -> float:
    value = _fact(facts, key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RefusedError(f"{key} is {value!r}, which is not a number")
    try:
        return float(value)
    except OverflowError:
        raise RefusedError(f"{key} is too large for a float") from None


def _fact(facts: dict[str, Any], key: str) -> object:
    """Return the value of a key. Some importers write sizes also under `model.KEY`, which must then agree."""
    value, again = facts.get(key), facts.get(f"model.{key}")
    if value is None:
        raise RefusedError(f"the metadata has no {key}, which is needed to build the model")
    if again is not None and not same_value(value, again):
        raise RefusedError(f"the metadata is inconsistent: {key} is {value!r}, but model.{key} is {again!r}")
    return value


def _default_head_dim(numbers: dict[str, int]) -> int:
    hidden, heads = numbers["hidden_size"], numbers["num_heads"]
    if heads < 1 or hidden % heads:
        raise RefusedError(
            f"hidden_size is {hidden}, which is not a multiple of num_heads, {heads}, and head_dim is missing"
        )
    return hidden // heads


def _rope(facts: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and the scaling of rotary frequencies. transformers 5 keeps both in `rope_parameters`."""
    # The number `rope_type` beside these is not read. The ecosystem's importer writes 0 (adjacent pairs) over
    # weights in transformers' order; the tensor names decide, in `permuted_heads`.
    parameters = facts.get("rope_parameters") or {}
    scaling = facts.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise RefusedError("rope_parameters and rope_scaling must be objects")
    merged = {**facts}
    theta = parameters.get("rope_theta")
    if theta is not None:
        merged.setdefault("rope_theta", theta)
        if not same_value(merged["rope_theta"], theta):
            raise RefusedError(
                f"the metadata is inconsistent: rope_theta is {merged['rope_theta']!r}, but "
                f"rope_parameters.rope_theta is {theta!r}"
            )
    for key in parameters.keys() & scaling.keys():
        if not same_value(parameters[key], scaling[key]):
            raise RefusedError(
                f"the metadata is inconsistent: rope_parameters.{key} is {parameters[key]!r}, but "
                f"rope_scaling.{key} is {scaling[key]!r}"
            )
    return _number(merged, "rope_theta"), _scaling({**parameters, **scaling})


def _scaling(facts: dict[str, Any]) -> RopeScaling | None:
    # transformers renamed `type` to `rope_type`. Files have one of them or both.
    kind, again = (facts.get(key) for key in ("rope_type", "type"))
    if kind is not None and again is not None and kind != again:
        raise RefusedError(f"the metadata is inconsistent: rope_type is {kind!r}, but type is {again!r}")
    kind = kind or again or "default"
    if kind == "default":
        if facts.get("factor") not in (None, 1, 1.0):
            raise RefusedError(
                f"rope scaling has factor {facts['factor']!r} but no rope_type; only llama3 is supported"
            )
        return None
    if kind != "llama3":
        raise RefusedError(f"rope scaling has type {kind!r}; only llama3 is supported")
    original = facts.get("original_max_position_embeddings")
    if isinstance(original, bool) or not isinstance(original, int):
        raise RefusedError(
            f"rope_scaling.original_max_position_embeddings is {original!r}, which is not a whole number"
        )
    factor, low, high = (_number(facts, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if not (factor > 0 and 0 < low < high and original > 0):
        raise RefusedError(
            f"rope_scaling is not valid: factor {factor}, low_freq_factor {low}, high_freq_factor {high}, "
            f"original_max_position_embeddings {original}"
        )
    return RopeScaling(factor, low, high, original)


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

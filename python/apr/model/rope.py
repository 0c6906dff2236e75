"""Rotary position embeddings: their parameters in metadata, in both spellings of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from apr.errors import RefusedError
from apr.gguf.rope_formulas import longrope_attention_factor, yarn_attention_factor
from apr.model.metadata import same_value

if TYPE_CHECKING:
    from collections.abc import Mapping

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]

# The parameters that each kind needs, and those with a default.
_NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
# Published factors are at most 64. The limit keeps powers of them finite.
_LARGEST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are changed for a longer context. Fields have the names of transformers' keys.

    Sources: linear (https://arxiv.org/abs/2306.15595), dynamic and yarn (https://arxiv.org/abs/2309.00071),
    llama3 (https://arxiv.org/abs/2407.21783), longrope (https://arxiv.org/abs/2402.13753).
    """

    rope_type: ScalingKind
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    """The context before the extension; all kinds but linear have it."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    """The factor of cosines and sines: yarn's and longrope's."""

    def to_metadata(self) -> dict[str, Any]:
        """Return the object that `read_scaling` restores."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.rope_type not in {"yarn", "longrope"}:
            del values["attention_factor"]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary positions of a kind of layers."""

    theta: float
    dim: int
    """The number of elements of a head that are rotated; the others stay."""
    scaling: RopeScaling | None = None
    interleaved: bool = False
    """Whether element 2i pairs with 2i + 1, instead of i with i + dim / 2."""


def rope_facts(facts: Mapping[str, Any], layer_type: str, *, per_type: bool) -> dict[str, Any]:
    """Return the rotary parameters of a kind of layers: `rope_theta`, `rope_type` and those of the scaling.

    transformers 5 keeps them in `rope_parameters`; with several kinds of layers, under the name of each kind.
    Older files have `rope_theta` and `rope_scaling`.

    Args:
        facts: the metadata.
        layer_type: "full_attention" or "sliding_attention".
        per_type: whether the family has parameters for each type of layers.

    Raises:
        RefusedError: the two spellings contradict each other, or are not objects.
    """
    # The number `rope_type` beside these is not read. The ecosystem's importer writes 0 (adjacent pairs) over
    # weights in transformers' order; the tensor names decide, in `permuted_heads`.
    parameters, scaling = facts.get("rope_parameters") or {}, facts.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise RefusedError("rope_parameters and rope_scaling must be objects")
    at = "rope_parameters"
    if per_type and parameters:
        at = f"rope_parameters.{layer_type}"
        parameters = parameters.get(layer_type) or {}
        if not isinstance(parameters, dict):
            raise RefusedError(f"{at} must be an object")
    if parameters.keys() & {"full_attention", "sliding_attention"}:
        raise RefusedError("rope_parameters has parts for types of layers, which this family does not have")
    if layer_type == "sliding_attention":
        scaling = {}
    for key in parameters.keys() & scaling.keys():
        if not same_value(parameters[key], scaling[key]):
            raise RefusedError(
                f"the metadata is inconsistent: {at}.{key} is {parameters[key]!r}, but rope_scaling.{key} is "
                f"{scaling[key]!r}"
            )
    theta, stated = parameters.get("rope_theta"), facts.get("rope_theta")
    # With several kinds of layers, the one beside them is that of full attention.
    differ = theta is not None and stated is not None and not same_value(theta, stated)
    if layer_type == "full_attention" and differ:
        raise RefusedError(
            f"the metadata is inconsistent: rope_theta is {stated!r}, but {at}.rope_theta is {theta!r}"
        )
    return {**scaling, **{key: value for key, value in parameters.items() if value is not None}}


def read_scaling(facts: Mapping[str, Any], max_position_embeddings: int, dim: int) -> RopeScaling | None:
    """Return the scaling that rotary parameters describe, or None.

    Args:
        facts: the parameters, as `rope_facts` returns them.
        max_position_embeddings: the model's context, which stands for an original context that is not given.
        dim: the number of elements of a head that are rotated.

    Raises:
        RefusedError: the kind is unknown, or a parameter is missing or out of range.
    """
    # transformers renamed `type` to `rope_type`. Files have one of them or both.
    kind, again = (facts.get(key) for key in ("rope_type", "type"))
    if kind is not None and again is not None and kind != again:
        raise RefusedError(f"the metadata is inconsistent: rope_type is {kind!r}, but type is {again!r}")
    kind = kind or again or "default"
    if kind == "su" or (kind == "yarn" and facts.get("short_factor") is not None):
        kind = "longrope"  # its names in the first Phi-3 models
    if kind == "default":
        if facts.get("factor") not in (None, 1, 1.0):
            raise RefusedError(
                f"rope scaling has factor {facts['factor']!r} but no rope_type; set it to one of "
                f"{', '.join(_NEEDED)}"
            )
        return None
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise RefusedError(f"rope scaling has type {kind!r}; supported: {', '.join(_NEEDED)}")
    for key in _NEEDED[kind]:
        if facts.get(key) is None:
            raise RefusedError(f"rope scaling of type {kind} has no {key}")
    if kind == "dynamic" and dim < 4:
        raise RefusedError(f"dynamic rope scaling needs heads of at least 4 rotated elements, not {dim}")
    if kind == "yarn" and not _positive(facts, "rope_theta", limit=math.inf) > 1:
        raise RefusedError(f"yarn needs a rope_theta above 1, not {facts['rope_theta']!r}")
    original = facts.get("original_max_position_embeddings", max_position_embeddings)
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        raise RefusedError(
            f"rope scaling: original_max_position_embeddings is {original!r}; it must be a positive integer"
        )
    values: dict[str, Any] = {"rope_type": kind, "original_max_position_embeddings": original}
    if kind == "linear":
        values = {"rope_type": kind, "factor": _positive(facts, "factor")}
    elif kind == "dynamic":
        # Grows with the length of the input, beyond the model's own context.
        values["original_max_position_embeddings"] = max_position_embeddings
        values["factor"] = _positive(facts, "factor")
    elif kind == "llama3":
        values |= {key: _positive(facts, key) for key in _NEEDED[kind]}
        if values["low_freq_factor"] >= values["high_freq_factor"]:
            raise RefusedError(
                f"rope scaling: low_freq_factor, {values['low_freq_factor']}, must be less than "
                f"high_freq_factor, {values['high_freq_factor']}"
            )
    elif kind == "yarn":
        values |= {
            "factor": _positive(facts, "factor"),
            "beta_fast": _positive(facts, "beta_fast", 32.0),
            "beta_slow": _positive(facts, "beta_slow", 1.0),
            "truncate": facts.get("truncate", True) is not False,
        }
        values["attention_factor"] = _yarn_attention_factor(facts, values["factor"])
    else:
        default = max_position_embeddings / original
        values |= {
            "factor": _positive(facts, "factor", default),
            "short_factor": _factors(facts, "short_factor", dim),
            "long_factor": _factors(facts, "long_factor", dim),
        }
        suggested = longrope_attention_factor(values["factor"], original)
        values["attention_factor"] = _positive(facts, "attention_factor", suggested)
    return RopeScaling(**values)


def _yarn_attention_factor(facts: Mapping[str, Any], factor: float) -> float:
    """Return YaRN's factor of cosines and sines, in transformers' form."""
    default = yarn_attention_factor(factor)
    if facts.get("mscale") and facts.get("mscale_all_dim"):
        first, all_dim = (
            yarn_attention_factor(factor, _positive(facts, key)) for key in ("mscale", "mscale_all_dim")
        )
        default = first / all_dim
    return _positive(facts, "attention_factor", default)


def _positive(
    facts: Mapping[str, Any], key: str, default: float | None = None, limit: float = _LARGEST
) -> float:
    value = facts.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= limit:
        raise RefusedError(f"rope scaling: {key} is {value!r}; it must be above 0 and at most {limit:,.0f}")
    return float(value)


def _factors(facts: Mapping[str, Any], key: str, dim: int) -> tuple[float, ...]:
    values = facts[key]
    if not isinstance(values, list) or len(values) != dim // 2:
        raise RefusedError(f"rope scaling: {key} must be a list of {dim // 2} numbers")
    return tuple(_positive({key: value}, key) for value in values)

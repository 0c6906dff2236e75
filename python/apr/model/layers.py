"""What differs between the layers of a model: windows and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError
from apr.model.metadata import integer, positive, switch
from apr.model.rope import Rope, read_scaling, rope_facts

if TYPE_CHECKING:
    from apr.model.families import Family

# The types of layers, as transformers names them.
SLIDING, FULL = "sliding_attention", "full_attention"
# Forged metadata may claim a billion layers. Published models have fewer than 200.
_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What differs between the layers of a model."""

    window: int | None
    """The number of positions that a position attends to, itself included; None for all before it."""
    rope: Rope | None
    """The rotary positions, or None for a layer without positions."""


def read_layers(
    facts: dict[str, Any], family: Family, numbers: dict[str, int], head_dim: int
) -> tuple[LayerKind, ...]:
    """Return the kind of each layer."""
    num_layers = numbers["num_layers"]
    if num_layers > _MAX_LAYERS:
        raise RefusedError(f"num_layers is {num_layers:,}; at most {_MAX_LAYERS:,} are supported")
    flags = _rope_flags(facts, family, num_layers)
    window = _window(facts, family)
    types = _layer_types(facts, family, num_layers, window, flags)
    if family.no_rope == "full":
        # EXAONE 4: layers that see all positions have none, in models that also have sliding layers.
        flags = [window is None or kind == SLIDING for kind in types]
    if not any(flags):
        raise RefusedError("no layer has rotary positions, which is not supported")
    kinds = {
        (kind, flag): LayerKind(
            window if kind == SLIDING else None,
            _rope(facts, family, numbers, head_dim, kind) if flag else None,
        )
        for kind, flag in dict.fromkeys(zip(types, flags, strict=True))
    }
    return tuple(kinds[key] for key in zip(types, flags, strict=True))


def _window(facts: dict[str, Any], family: Family) -> int | None:
    """Return the size of the windows, or None for a model without windows."""
    window = facts.get("sliding_window")
    if family.windows == "none" or (family.window_switch and not switch(facts, "use_sliding_window")):
        return None
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise RefusedError(f"sliding_window is {window!r}; it must be a positive whole number")
    return window


def _layer_types(
    facts: dict[str, Any], family: Family, num_layers: int, window: int | None, flags: list[bool]
) -> list[str]:
    """Return the type of each layer, as transformers names them."""
    stated = facts.get("layer_types")
    if family.windows == "all":
        return [FULL if window is None else SLIDING] * num_layers
    if window is None:
        if isinstance(stated, list) and SLIDING in stated:
            raise RefusedError(f"layer_types contains {SLIDING!r}, but no sliding_window is in use")
        return [FULL] * num_layers
    if stated is not None:
        known = isinstance(stated, list) and all(kind in (SLIDING, FULL) for kind in stated)
        if not known or len(stated) != num_layers:
            raise RefusedError(
                f"layer_types must list {SLIDING!r} or {FULL!r} for each of the {num_layers} layers"
            )
        return list(map(str, stated))
    if family.windows == "without rope":
        return [FULL if flag else SLIDING for flag in flags]
    if family.windows == "upper":
        first = integer(facts, "max_window_layers")
        return [SLIDING if index >= first else FULL for index in range(num_layers)]
    every = (
        facts.get("sliding_window_pattern", family.full_every) if family.pattern_key else family.full_every
    )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise RefusedError(f"sliding_window_pattern is {every!r}; it must be a positive whole number")
    return [SLIDING if (index + 1) % every else FULL for index in range(num_layers)]


def _rope_flags(facts: dict[str, Any], family: Family, num_layers: int) -> list[bool]:
    """Return whether each layer has rotary positions."""
    if family.no_rope != "listed":
        return [True] * num_layers
    stated = facts.get("no_rope_layers")
    if stated is None:
        every = integer(facts, "no_rope_layer_interval")
        if every < 1:
            raise RefusedError(f"no_rope_layer_interval is {every}; it must be at least 1")
        return [(index + 1) % every != 0 for index in range(num_layers)]
    # 1 is a layer with rotary positions, whatever the name of the key says.
    if not isinstance(stated, list) or len(stated) != num_layers or {*map(repr, stated)} - {"0", "1"}:
        raise RefusedError(f"no_rope_layers must list 0 or 1 for each of the {num_layers} layers")
    return [flag == 1 for flag in stated]


def _rope(facts: dict[str, Any], family: Family, numbers: dict[str, int], head_dim: int, kind: str) -> Rope:
    """Return the rotary positions of a type of layers."""
    per_type = family.rope_per_type
    parts = facts.get("rope_parameters")
    if per_type and isinstance(parts, dict) and not parts.keys() <= {FULL, SLIDING}:
        raise RefusedError(f"rope_parameters must have an object for each of {FULL!r} and {SLIDING!r}")
    own = rope_facts(facts, kind if per_type else FULL, per_type=per_type)
    if kind == SLIDING and per_type and "rope_theta" not in own:
        local = facts.get("rope_local_base_freq") if "rope_local_base_freq" in family.defaults else None
        own["rope_theta"] = facts.get("rope_theta") if local is None else local
    own.setdefault("rope_theta", facts.get("rope_theta"))
    context = numbers["max_position_embeddings"]
    if facts.get("original_max_position_embeddings") is not None:
        # transformers' order: Phi-3 keeps it beside the rope parameters, and it comes first.
        own["original_max_position_embeddings"] = facts["original_max_position_embeddings"]
    dim = head_dim
    if family.fraction:
        fraction = own.get("partial_rotary_factor", facts.get("partial_rotary_factor", 1.0))
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise RefusedError(f"partial_rotary_factor is {fraction!r}; it must be above 0 and at most 1")
        dim = int(head_dim * fraction)
    theta = positive(own | {"model.rope_theta": facts.get("model.rope_theta")}, "rope_theta")
    return Rope(theta, dim, read_scaling(own, context, dim), family.interleaved)

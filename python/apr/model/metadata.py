"""What the metadata of a model file say of the model, in each of the spellings that writers use."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The first spelling is the one that is written; the others occur in the wild.
ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "tie_word_embeddings": ("tied_embeddings",),
}
_WHICH_MODEL = (
    "name",
    "version",
    "license",
    "model_type",
    "architecture",
    "hf_architecture",
    "hf_model_type",
)


def canonical(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which every known fact stands under its first spelling alone, nulls left out.

    Raises:
        RefusedError: two spellings of one fact contradict each other; the message names both.
    """
    aliases = {alias for others in ALIASES.values() for alias in others}
    plain = {key: value for key, value in metadata.items() if key not in aliases and value is not None}
    for key in ALIASES:
        found = spellings(metadata, key)
        for spelling, value in found.items():
            first = next(iter(found))
            if not same_value(found[first], value):
                raise RefusedError(
                    f"metadata contradict themselves: {first} is {found[first]!r}, {spelling} is {value!r}; "
                    "correct one of the two"
                )
            plain[key] = found[first]
    return plain


def of_a_later_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the second and later files of several repeat: what model they are a part of, and its sizes.

    A tokenizer and configurations stand in the first file alone, whose metadata are those of the model.
    """
    sizes = {spelling for key, others in ALIASES.items() for spelling in (key, *others)}
    return {key: value for key, value in metadata.items() if key in sizes or key in _WHICH_MODEL}


def spellings(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The spellings of a fact that the metadata hold, the one that is written first, nulls left out."""
    names = (key, *ALIASES.get(key, ()))
    return {name: metadata[name] for name in names if metadata.get(name) is not None}


def same_value(a: object, b: object) -> bool:
    """Equal, floats as float32: writers hold 1e-06 also as 9.999999974752427e-07."""
    if isinstance(a, float) or isinstance(b, float):
        try:
            return struct.pack("<f", a) == struct.pack("<f", b)
        except (struct.error, OverflowError):
            return False
    return a == b

"""Metadata about the model, in all spellings that writers use."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The key that apr writes, and the keys that other writers use for the same fact.
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
# What identifies a model beside its sizes.
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
    """Return the metadata without nulls, with every known fact only under the key that apr writes.

    Raises:
        RefusedError: two spellings of a fact contradict each other.
    """
    # Writers put null where they do not know a fact. It must not contradict another spelling.
    aliases = {alias for others in ALIASES.values() for alias in others}
    plain = {key: value for key, value in metadata.items() if key not in aliases and value is not None}
    for key in ALIASES:
        values = spellings(metadata, key)
        for spelling, value in values.items():
            first = next(iter(values))
            if not same_value(values[first], value):
                raise RefusedError(
                    f"the metadata is inconsistent: {first} is {values[first]!r}, but "
                    f"{spelling} is {value!r}; correct one of the two"
                )
            plain[key] = values[first]
    return plain


def for_later_shard(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that the second and later files of a model repeat: the model's name and sizes.

    The tokenizer and the configurations can be large. They are only in the first file.
    """
    sizes = {spelling for key, others in ALIASES.items() for spelling in (key, *others)}
    return {key: value for key, value in metadata.items() if key in sizes or key in _WHICH_MODEL}


def spellings(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the spellings of a fact that the metadata have, apr's own first, without nulls."""
    names = (key, *ALIASES.get(key, ()))
    return {name: metadata[name] for name in names if metadata.get(name) is not None}


def same_value(a: object, b: object) -> bool:
    """Whether two values are equal, floats as float32: some writers store 1e-06 as 9.999999974752427e-07."""
    if isinstance(a, float) or isinstance(b, float):
        try:
            return struct.pack("<f", a) == struct.pack("<f", b)
        except (struct.error, OverflowError):
            return False
    return a == b

"""Metadata about the model, in all spellings that writers use."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_CONFIG, HF_GENERATION, HF_TOKENIZER
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
# The beginnings of the keys of a tokenizer and of chats.
_TOKENIZER_KEYS = ("tokenizer.", "chat_template", "special_tokens", HF_TOKENIZER)
# How transformers configured and generates from the base model; a directory of the result has them again.
_CONFIGURATIONS = (HF_CONFIG, HF_GENERATION)
# Null where the base model does not have them: the ecosystem's own writer always writes these keys.
_PROVENANCE_KEYS = ("license", "data_source", "data_license")
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


def carried_metadata(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a model that is trained further keeps of its base's metadata: its own, and its tokenizer's.

    A fine-tuned model must be usable without its base.
    """
    kept = ("name", *_PROVENANCE_KEYS, *_CONFIGURATIONS)
    about_model: dict[str, Any] = dict.fromkeys(_PROVENANCE_KEYS)
    about_model |= {key: metadata[key] for key in kept if key in metadata}
    return about_model, {key: value for key, value in metadata.items() if key.startswith(_TOKENIZER_KEYS)}


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


def integer(facts: Mapping[str, Any], key: str) -> int:
    """Return a whole number.

    Raises:
        RefusedError: the key is missing, or its value is not a whole number.
    """
    value = _fact(facts, key)
    # bool is a subclass of int, but true is not a size.
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError(f"{key} is {value!r}, which is not a whole number")
    if abs(value) >= 2**63:
        raise RefusedError(f"{key} is too large")
    return value


def switch(facts: Mapping[str, Any], key: str) -> bool:
    """Return whether a switch is on; a missing one is off.

    Raises:
        RefusedError: the value is neither true nor false.
    """
    value = facts.get(key)
    if value is not None and not isinstance(value, bool):
        raise RefusedError(f"{key} is {value!r}; it must be true or false")
    return value is True


def number(facts: Mapping[str, Any], key: str) -> float:
    """Return a number.

    Raises:
        RefusedError: the key is missing, or its value is not a number.
    """
    value = _fact(facts, key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RefusedError(f"{key} is {value!r}, which is not a number")
    try:
        return float(value)
    except OverflowError:
        raise RefusedError(f"{key} is too large for a float") from None


def _fact(facts: Mapping[str, Any], key: str) -> object:
    """Return the value of a key. Some importers write sizes also under `model.KEY`, which must then agree."""
    value, again = facts.get(key), facts.get(f"model.{key}")
    if value is None:
        raise RefusedError(f"the metadata has no {key}, which is needed to build the model")
    if again is not None and not same_value(value, again):
        raise RefusedError(f"the metadata is inconsistent: {key} is {value!r}, but model.{key} is {again!r}")
    return value


def positive(facts: Mapping[str, Any], key: str) -> float:
    """Return a positive, finite number.

    Raises:
        RefusedError: the key is missing, or its value is another one.
    """
    value = number(facts, key)
    check_positive(key, value)
    return value


def check_positive(key: str, value: float) -> None:
    """Refuse a value that is not a positive, finite number."""
    # False for NaN too, which Python reads from JSON.
    if not 0 < value < float("inf"):
        raise RefusedError(f"{key} is {value}; it must be a positive, finite number")

"""The JSON metadata of a container: read-only in Python, and the one spelling of each known fact."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

from apr.errors import RefusedError

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
VOCABULARY = "tokenizer.vocabulary"
_WHICH_MODEL = (
    "name",
    "version",
    "license",
    "model_type",
    "architecture",
    "hf_architecture",
    "hf_model_type",
)
# What `apr convert` keeps of a transformers directory: config.json and generation_config.json as objects, the
# tokenizer's files as they were (name: text).
HF_CONFIG, HF_GENERATION, HF_TOKENIZER = "hf_config", "hf_generation_config", "hf_tokenizer"
# The names of those files; what is no text is kept as {"base64": …}.
TOKENIZER_TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
TOKENIZER_BINARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
SHARDING = "sharding"


class Metadata(dict[str, Any]):
    """A dict that cannot be changed: it says what is in a file. `dict(metadata)` gives one that can."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the metadata of an open file cannot be changed: change a copy, dict(f.metadata)")

    __setitem__ = __delitem__ = _refuse
    __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[object, ...]:
        return Metadata, (dict(self),)


def encode(metadata: Mapping[str, object] | None) -> str:
    """The JSON text that is written: key order kept, nothing added.

    Raises:
        TypeError: a key that is no string, a value that JSON has no form for; the message names the key.
        ValueError: NaN, an infinity, a lone surrogate, a circle.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata are a mapping, not {type(metadata).__name__}")
    pairs = []
    for key, value in (metadata or {}).items():
        try:
            pair = _dumps({key: value})[1:-1]
        except UnicodeEncodeError:
            raise ValueError(f"metadata key {key!r}: a lone surrogate has no UTF-8 form") from None
        except RecursionError:
            raise ValueError(f"metadata key {key!r}: nested too deep") from None
        except (TypeError, ValueError) as error:
            raise type(error)(f"metadata key {key!r}: {error}") from None
        _check_keys(key, value)
        pairs.append(pair)
    return f"{{{','.join(pairs)}}}"


def texts(metadata: Mapping[str, str] | None) -> Mapping[str, str]:
    """What safetensors takes as metadata: text to text.

    Raises:
        TypeError: anything else; the message names the key.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r} is not text to text; apr.save takes any JSON")
    return metadata or {}


def as_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as safetensors has them: values other than text as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }


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


def _dumps(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()  # a lone surrogate has no UTF-8 form
    return text


def _check_keys(key: object, value: object) -> None:
    """`json` would turn other keys into strings without a word."""
    if not isinstance(key, str):
        raise TypeError(f"metadata key {key!r} is no string")
    if isinstance(value, dict):
        for inner, below in value.items():
            _check_keys(inner, below)
    elif isinstance(value, (list, tuple)):
        for below in value:
            if isinstance(below, (dict, list, tuple)):
                _check_keys(key, below)

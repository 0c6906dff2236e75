"""The JSON metadata of a file: a read-only dictionary, and the text that is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

# Keys that the header has a flag for.
VOCABULARY, HF_TOKENIZER, SHARDING = "tokenizer.vocabulary", "hf_tokenizer", "sharding"
# config.json and generation_config.json of a transformers directory, as JSON objects.
HF_CONFIG, HF_GENERATION = "hf_config", "hf_generation_config"


class Metadata(dict[str, Any]):
    """A dictionary whose top-level keys cannot be changed. `dict(metadata)` returns a copy that can."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the metadata of an open file is read-only; change a copy, such as dict(f.metadata)")

    __setitem__ = __delitem__ = _refuse
    __ior__ = clear = pop = popitem = setdefault = update = _refuse

    # A pickle of a dict is filled through `__setitem__`, which refuses here.
    def __reduce__(self) -> tuple[object, ...]:
        return Metadata, (dict(self),)


def encode(metadata: Mapping[str, object] | None) -> str:
    """Return the JSON text that is written, with the keys in their order.

    Raises:
        TypeError: a key is not a string, or JSON cannot represent a value; the message names the key.
        ValueError: NaN, an infinity, a lone surrogate, or a circular reference.
    """
    members = []
    # One key at a time, so that the message can name the key.
    for key, value in (metadata or {}).items():
        try:
            # Not escaped: a vocabulary in other scripts would be up to three times as long, and 16 MiB are
            # the limit.
            text = json.dumps({key: value}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            # `json.dumps` lets a lone surrogate pass; UTF-8 does not.
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"metadata key {key!r}: a lone surrogate cannot be encoded as UTF-8") from None
        except RecursionError:
            raise ValueError(f"metadata key {key!r}: nested too deeply") from None
        except (TypeError, ValueError) as error:
            raise type(error)(f"metadata key {key!r}: {error}") from None
        _check_keys(key, value)
        members.append(text[1:-1])
    return f"{{{','.join(members)}}}"


def _check_keys(key: object, value: object) -> None:
    # `json` would silently turn keys such as 1 and None into strings.
    if not isinstance(key, str):
        raise TypeError(f"metadata key {key!r} is not a string")
    if isinstance(value, dict):
        for inner, below in value.items():
            _check_keys(inner, below)
    elif isinstance(value, (list, tuple)):
        for below in value:
            if isinstance(below, (dict, list, tuple)):
                _check_keys(key, below)

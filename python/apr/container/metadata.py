"""The JSON metadata of a container: read-only in Python, and the one spelling of each known fact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

VOCABULARY = "tokenizer.vocabulary"
HF_TOKENIZER = "hf_tokenizer"
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

"""Metadata as safetensors has them: a mapping from strings to strings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def checked_texts(metadata: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the metadata unchanged if all keys and values are strings; an empty mapping for None.

    Raises:
        TypeError: a key or a value is not a string; the message names the key.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r} is not a string; apr.save accepts any JSON value")
    return metadata or {}


def as_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata with every value that is not a string written as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }

"""Metadata as safetensors has them: text to text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


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

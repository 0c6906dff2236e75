"""Tell the format of a model file from its first bytes. Loads nothing: `convert` and `formats` ask alike."""

from __future__ import annotations

from typing import Literal

FileFormat = Literal["apr", "gguf", "safetensors"]
# The limit of the safetensors package. A file with a longer header is something else.
_MAX_SAFETENSORS_HEADER = 100_000_000


def format_of_start(start: bytes) -> FileFormat | None:
    """Return the format of a file from its first nine bytes; None if they are those of no model."""
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:3] == b"APR":
        return "apr"
    # safetensors has no magic: a file starts with the length of its header, which is a JSON object.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return "safetensors"
    return None

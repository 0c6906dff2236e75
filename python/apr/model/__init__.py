"""Qwen2 and Llama decoders: configuration from metadata, strict filling, the forward pass."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder

__all__ = ["Decoder", "ModelConfig"]

_HOME = {"Decoder": "apr.model.decoder", "ModelConfig": "apr.model.config"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.model' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""Convert models between GGUF, safetensors, transformers directories and `.apr` files.

This package stands above `container`, `gguf`, `model` and `data`: a transformers directory is written from a
model's configuration and with its tokenizer.
"""

from apr._lazy import lazy_exports

# `__init__.pyi` lists the public names.
__all__, __getattr__, __dir__ = lazy_exports(__name__)

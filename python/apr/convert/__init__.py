"""Convert models between GGUF, safetensors, transformers directories and `.apr` files.

This package stands above `container`, `gguf`, `model` and `data`: a transformers directory is written from a
model's configuration and with its tokenizer.
"""

from apr.convert.conversion import Conversion, convert
from apr.convert.plan import ConvertOptions
from apr.convert.stream import FloatDtype, OnTensor

__all__ = ["Conversion", "ConvertOptions", "FloatDtype", "OnTensor", "convert"]

"""The functions of `safetensors.torch` for `.apr` files: change the import and keep the script."""

from __future__ import annotations

from apr.errors import named_extras

with named_extras():
    from apr.compat.torch_functions import load, load_file, load_model, save, save_file, save_model

__all__ = ["load", "load_file", "load_model", "save", "save_file", "save_model"]


def __dir__() -> list[str]:
    return __all__

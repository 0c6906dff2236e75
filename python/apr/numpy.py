"""The functions of `safetensors.numpy` for `.apr` files: change the import and keep the script."""

from __future__ import annotations

from apr.compat.numpy_functions import load, load_file, save, save_file

__all__ = ["load", "load_file", "save", "save_file"]


def __dir__() -> list[str]:
    return __all__

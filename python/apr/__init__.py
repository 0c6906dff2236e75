"""The Python home of `.apr` model files: open, check and write them, and train from them."""

from apr._lazy import lazy_exports

# `__init__.pyi` lists the public names.
__all__, __getattr__, __dir__ = lazy_exports(__name__)

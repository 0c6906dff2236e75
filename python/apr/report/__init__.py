"""Reports: an HTML page about one run, or about two runs side by side."""

from apr._lazy import lazy_exports

# `__init__.pyi` lists the public names.
__all__, __getattr__, __dir__ = lazy_exports(__name__)

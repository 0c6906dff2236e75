"""Contracts: promises in YAML, each with a test that can prove it false."""

from apr._lazy import lazy_exports

# `__init__.pyi` lists the public names.
__all__, __getattr__, __dir__ = lazy_exports(__name__)

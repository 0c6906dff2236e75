"""Token shards: the stream of ids, its windows and the held-out split, the manifest, encoding."""

from apr._lazy import lazy_exports

# `__init__.pyi` lists the public names.
__all__, __getattr__, __dir__ = lazy_exports(__name__)

"""Token shards: the stream of ids, its windows and the held-out split, the manifest, encoding."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.data.rebuild import RepairReport, repair
    from apr.data.shards import ShardDir

__all__ = ["RepairReport", "ShardDir", "repair"]

_HOME = {"RepairReport": "apr.data.rebuild", "ShardDir": "apr.data.shards", "repair": "apr.data.rebuild"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.data' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

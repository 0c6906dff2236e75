"""Token shards: the stream of ids, its windows and the held-out split, the manifest, encoding."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.data.loader import Loader, LoaderState
    from apr.data.rebuild import RepairReport, repair
    from apr.data.shards import ShardDir
    from apr.data.windows import Windows

__all__ = ["Loader", "LoaderState", "RepairReport", "ShardDir", "Windows", "repair"]

_HOME = {
    "Loader": "apr.data.loader",
    "LoaderState": "apr.data.loader",
    "RepairReport": "apr.data.rebuild",
    "ShardDir": "apr.data.shards",
    "Windows": "apr.data.windows",
    "repair": "apr.data.rebuild",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.data' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""The compiled module: `rust/apr-python` over `rust/apr-format`."""

from collections.abc import Buffer, Sequence
from os import PathLike
from typing import TypeAlias, final

__version__: str

# container

_HeaderFields: TypeAlias = tuple[bytes, tuple[int, int], int, int, int, int, int, int, int, bytes]
_Entry: TypeAlias = tuple[str, tuple[int, ...], int, int]
_Check: TypeAlias = tuple[str, bool | None, str, str | None, int | None]
Findings: TypeAlias = tuple[bool, tuple[_Check, ...]]

# shards

_ShardRow: TypeAlias = tuple[int, int | None, tuple[int, int] | None, str, bytes]

def scan_shards(paths: Sequence[str | PathLike[str]], limit: int | None = None) -> tuple[_ShardRow, ...]: ...

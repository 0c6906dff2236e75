"""Changing the metadata of a file and nothing else."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from apr._core import Stamp
from apr.container.header import Flags
from apr.container.metadata import encode
from apr.container.save import SAID_BY_FLAG, flags

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

# Set by some writers over data that are not compressed; never written.
_UNTRUE = Flags.LZ4_COMPRESSED | Flags.ZSTD_COMPRESSED


def stamp(path: str | PathLike[str], changes: Mapping[str, object], out: str | PathLike[str]) -> None:
    """Write a file anew with some metadata changed; the tensors' bytes, their order and gaps stay.

    The source is checked against its footer while it is copied: damage is not passed on under a new
    checksum. A source without a footer cannot be checked; the new file has one all the same. Old spellings
    of the format (magic, dtype ids) become the current ones. Memory does not grow with the file.

    Args:
        path: the file.
        changes: top-level keys to JSON values. A key that is there keeps its place, a new one comes last;
            None removes a key (one that is not there already is gone).
        out: the file to write, replaced only once the new one is whole; may be `path` itself.

    Raises:
        ChecksumError: the source is damaged; `out` is as it was.
        AprError: the source is no v2 file, or the metadata would pass 16 MiB.
        TypeError, ValueError: a key that is no string, a value that JSON has no form for.
        OSError: the source cannot be read, or `out` not be written.
    """
    encode(changes)  # refused by key, also where the value is None
    source = Stamp(path)
    metadata = json.loads(source.metadata()) | changes
    metadata = {key: value for key, value in metadata.items() if key not in changes or value is not None}
    stale = int(reduce(or_, (flag for key, flag in SAID_BY_FLAG.items() if key in changes), _UNTRUE))
    kept = source.flags & ~stale  # of an int: the negation of a flag would drop bits without a name
    source.write(out, encode(metadata), kept | flags(metadata))

"""`apr.stamp`: change the metadata of a file and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from apr._core import Stamp
from apr.container.byte_dtypes import check_unreserved
from apr.container.header import Flags
from apr.container.load import recognizing
from apr.container.metadata import encode
from apr.container.save import FLAG_OF_KEY, flags_of
from apr.container.shard_index import find_model
from apr.path_arguments import as_path, warn_of_foreign_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


def stamp(path: str | PathLike[str], changes: Mapping[str, object], out: str | PathLike[str]) -> None:
    """Write a copy of a file with some metadata changed. The bytes, order and gaps of the tensors stay.

    The source is checked against its footer while it is copied, so that damage does not get a new checksum.
    A source without a footer cannot be checked; the copy gets a footer nevertheless. Older spellings of the
    format (magic, dtype ids) become the current ones. Memory does not grow with the file.

    Args:
        path: the source, a version 2 file, or the directory of one.
        changes: JSON values by top-level key. An existing key keeps its place, a new one is appended, and
            None removes a key. Removing a key that does not exist does nothing.
        out: the file to write, which replaces an existing one only once it is complete; may be `path`.

    Raises:
        ChecksumError: the source is damaged; `out` is unchanged.
        AprError: the source is not a version 2 file, or the metadata would exceed 16 MiB.
        TypeError, ValueError: a key is not a string, or JSON cannot represent a value.
        OSError: the source cannot be read, or `out` cannot be written.
    """
    order = "stamp(path, changes, out)"
    path, out = as_path(path, order=order), as_path(out, "out", order, is_written=True)
    check_unreserved(changes)
    encode(changes)  # also checks the keys to remove
    warn_of_foreign_name(out)
    with recognizing(path):
        source = Stamp(find_model(Path(path)))
    # `|` keeps the place of a key that exists, so that nothing else of the metadata moves.
    metadata = json.loads(source.metadata()) | changes
    metadata = {key: value for key, value in metadata.items() if key not in changes or value is not None}
    # Some writers set the flags of compression over data that are not compressed.
    cleared = Flags.LZ4_COMPRESSED | Flags.ZSTD_COMPRESSED
    for key, flag in FLAG_OF_KEY.items():
        if key in changes:
            cleared |= flag
    # Through int: the complement of an IntFlag drops the bits without a name, which must stay.
    kept = source.flags & ~int(cleared)
    source.write(out, encode(metadata), kept | flags_of(metadata))

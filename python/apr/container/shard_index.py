"""The index of a model in several files (`model.apr.index.json`): which file holds which tensor."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any, NoReturn

from apr.errors import FormatError
from apr.recognize import recognized

if TYPE_CHECKING:
    from pathlib import Path

# Ends the name of an index; the name before it is the model's.
INDEX_SUFFIX = ".apr.index.json"
# Larger than the index of any model, so that a wrong file is not read into memory.
_LARGEST_INDEX = 64 << 20


def find_model(path: Path) -> Path:
    """Return the index, or the single `.apr` file, that a directory stands for; other paths as they are.

    Raises:
        IsADirectoryError: the directory has neither one index nor exactly one `.apr` file.
    """
    if not path.is_dir():
        return path
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208 (names)
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(".apr")]
    # An index outranks files: those beside it are usually its parts.
    candidates = indices or files
    if not candidates:
        what = recognized(path)
        problem = what or f"the directory has neither an index (*{INDEX_SUFFIX}) nor an .apr file"
        raise IsADirectoryError(errno.EISDIR, problem, os.fspath(path))
    if len(candidates) > 1:
        problem = (
            f"the directory has {len(indices)} indices (*{INDEX_SUFFIX}) and {len(files)} .apr files; "
            "pass the path of one of them"
        )
        raise IsADirectoryError(errno.EISDIR, problem, os.fspath(path))
    return path / candidates[0]


def read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor. Every name is one in the directory of the index.

    A link is followed wherever it leads: in the cache of the Hugging Face Hub, each file is a link to
    `../../blobs`.

    Raises:
        FormatError: the file is not a valid index, or a file name has a directory.
        FileNotFoundError: a file that the index names does not exist.
        OSError: the index cannot be read.
    """
    weight_map = _parse_index(path)
    for name in dict.fromkeys(weight_map.values()):
        # A hostile index must not make a reader open files elsewhere. It cannot make links.
        if "/" in name or not name.isprintable() or not name.endswith(".apr"):
            refuse_index(path, f"{name!r} must be the name of an .apr file, without a directory")
        file = path.with_name(name)
        if not os.path.lexists(file):
            raise FileNotFoundError(
                errno.ENOENT, f"no such file, although {path.name} lists it", os.fspath(file)
            )
    return weight_map


def refuse_index(path: Path, problem: str, tensor: str | None = None) -> NoReturn:
    """Raise the error for an index that is invalid or does not match its files."""
    raise FormatError(f"{path}: {problem}", path=path, tensor=tensor)


def _parse_index(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        # One byte more than the limit tells that the file is larger, without reading the rest.
        text = file.read(_LARGEST_INDEX + 1)
    if len(text) > _LARGEST_INDEX:
        refuse_index(path, "too large for an index (more than 64 MiB)")
    try:
        index = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except _DuplicateKeyError as error:
        refuse_index(path, f"duplicate key {error.args[0]!r}")
    except (ValueError, RecursionError) as error:
        refuse_index(path, f"invalid JSON: {type(error).__name__}: {error}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    # Nothing else is needed: `metadata.total_size`, which other tools write, is not relied on.
    if not isinstance(weight_map, dict) or not weight_map:
        refuse_index(path, "not an index: weight_map must be an object that maps tensor names to file names")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            refuse_index(path, f"tensor {tensor!r}: the file name must be a string, not {name!r}", tensor)
    return weight_map


class _DuplicateKeyError(Exception):
    """An object of the index has the same key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # `json` keeps the last of two equal keys: two readers could take different files for one tensor.
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise _DuplicateKeyError(key)
        members[key] = value
    return members

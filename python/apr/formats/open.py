"""Open a model of any format. The bytes of a file decide which, and its name where they say nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from apr.container.legacy.keys import refuse_keys
from apr.container.load import load
from apr.container.shard_index import INDEX_SUFFIX, find_model
from apr.errors import named_extras
from apr.file_format import format_of_start
from apr.path_arguments import as_path
from apr.recognize import recognized

if TYPE_CHECKING:
    from os import PathLike
    from typing import Unpack

    from apr.container.legacy.keys import Keys
    from apr.container.model_file import ModelFile
    from apr.file_format import FileFormat

SAFETENSORS_INDEX = ".safetensors.index.json"
# The files of a transformers model, in the order in which transformers looks for them.
_TRANSFORMERS = ("model.safetensors", "model.safetensors.index.json")
# Models that an error lists.
_MAX_LISTED = 3


@named_extras()
def open_model(path: str | PathLike[str], **keys: Unpack[Keys]) -> ModelFile:
    """Open a model file, an index, or the model in a directory.

    Args:
        path: an .apr, safetensors or GGUF file; or, for a model in several files, its index or directory.
        keys: `password`, `recipient_key` and `trusted_key` as in `apr.load`; for an .apr file alone.

    Raises:
        AprError: a file is damaged, cut short, or of an unsupported kind; the error has the path, tensor and
            byte.
        DecryptionError: a key was given, but the file is not encrypted.
        SignatureError: a trusted key was given, but the file is not signed.
        IsADirectoryError: the directory has no model, or several.
        OSError: a file cannot be opened or read.
    """
    path = as_path(path)
    model = find(Path(path))
    kind = format_of(model)
    if kind is None or kind == "apr":
        # The reader of .apr files says what else a file may be.
        return load(path, **keys)
    refuse_keys(model, keys)
    # Imported here: an .apr file needs neither NumPy nor the gguf package to be listed and verified.
    if kind == "gguf":
        from apr.formats.gguf import open_gguf

        return open_gguf(model, path)
    from apr.formats.safetensors import open_safetensors

    return open_safetensors(model, path, Path(path) if model != Path(path) else None)


def find(path: Path) -> Path:
    """Return the file or index that a directory stands for; other paths as they are.

    An .apr model comes first, then what transformers would load, then the only file of its kind.

    Raises:
        IsADirectoryError: the directory has no model, or several.
    """
    if not path.is_dir():
        return path
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208 (names)
    if any(name.endswith((".apr", INDEX_SUFFIX)) for name in names):
        return find_model(path)
    for name in _TRANSFORMERS:
        if name in names:
            return path / name
    indices = [name for name in names if name.endswith(SAFETENSORS_INDEX)]
    files = [name for name in names if name.endswith(".safetensors")]
    # An index outranks files: those beside it are usually its parts.
    candidates = (indices or files) + [name for name in names if name.endswith(".gguf")]
    if len(candidates) == 1:
        return path / candidates[0]
    if not candidates:
        problem = (
            recognized(path)
            or "the directory has no .apr, .safetensors or .gguf file and no index (*.index.json)"
        )
    else:
        listed = ", ".join(candidates[:_MAX_LISTED])
        more = ", …" if len(candidates) > _MAX_LISTED else ""
        problem = f"the directory has several models ({listed}{more}); pass the path of one"
    raise IsADirectoryError(errno.EISDIR, problem, os.fspath(path))


def format_of(path: Path) -> FileFormat | None:
    """Return the format of a file or an index; None if neither its bytes nor its name are those of a model.

    Raises:
        OSError: the file cannot be read.
    """
    if path.name.endswith(SAFETENSORS_INDEX):
        return "safetensors"
    if path.name.endswith(INDEX_SUFFIX):
        return "apr"
    # Opening a named pipe would wait for a writer.
    if path.exists() and not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(9)
    # Damage to the first bytes must not make something else of a model.
    by_name: dict[str, FileFormat] = {".apr": "apr", ".safetensors": "safetensors", ".gguf": "gguf"}
    return format_of_start(start) or by_name.get(path.suffix)

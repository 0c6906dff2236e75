"""`apr.load`: open a file of any version, or a model in several files."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apr._core import Container
from apr.container.file import AprFile
from apr.errors import FormatError, UnsupportedError
from apr.path_arguments import as_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from apr.container.tensor_file import TensorFile


def load(
    path: str | PathLike[str],
    *,
    verify: Literal["structure", "full"] = "structure",
    password: str | None = None,
    recipient_key: bytes | None = None,
    trusted_key: bytes | None = None,
) -> TensorFile:
    """Open a model file. Opening reads the header and the index; tensors are mapped on first use.

    The metadata of a current file (version 2) are read and checked on first use, so that a tokenizer of
    12 MB takes no time from a reader that only needs tensors.

    Args:
        path: the file; or, for a model in several files, its index (`model.apr.index.json`) or directory.
        verify: "structure" checks the header, the index and all bounds. "full" also checks the metadata and
            the CRC32 of every byte.
        password: the password of an encrypted version 1 file.
        recipient_key: the X25519 secret key (32 bytes) that a version 1 file is encrypted for.
        trusted_key: the Ed25519 public key (32 bytes) that must have signed a version 1 file.

    Returns:
        A mapping from tensor names to tensors: an `AprFile`; for a model in several files a `ShardedFile`;
        for version 1 (magic `APRN`) a `V1File`.

    Raises:
        AprError: the file is damaged, cut short, or of an unsupported kind; the error has the path, tensor
            and byte.
        DecryptionError: a key is wrong or of the wrong kind, or the file is not encrypted.
        SignatureError: the signature is missing, wrong, or not made by the trusted key.
        IsADirectoryError: the directory has neither one index nor exactly one `.apr` file.
        OSError: the file cannot be opened or read.
    """
    if verify not in {"structure", "full"}:
        raise ValueError(f"verify must be 'structure' or 'full', not {verify!r}")
    path = as_path(path)
    if path.endswith(".index.json") or os.path.isdir(path):  # noqa: PTH112 (a Path costs more)
        # Imported here: opening one file takes a third of a millisecond, and needs none of these.
        from apr.container.legacy.keys import refuse_keys
        from apr.container.shard_index import find_model
        from apr.container.sharded import ShardedFile

        _refuse_safetensors(path)
        model = find_model(Path(path))
        if not model.name.endswith(".apr"):
            refuse_keys(
                model, {"password": password, "recipient_key": recipient_key, "trusted_key": trusted_key}
            )
            return ShardedFile(model, verify=verify)
        path = os.fspath(model)
    with recognizing(path):
        container = Container(path, password, recipient_key, trusted_key)
    if verify == "full":
        # The metadata of a version 2 file are not read before: with a tokenizer they are 12 MB, which take 85
        # ms.
        container.check_rest()
    # By contents, not by name: version 1 and some files of version 2 have the same magic, `APRN`.
    if container.form != "APR v1":
        return AprFile(path, container)
    from apr.container.legacy.v1 import V1File

    return V1File(path, container)


@contextmanager
def recognizing(path: str | PathLike[str]) -> Iterator[None]:
    """Make the error of a file that is not a model say what the file is, by its name."""
    try:
        yield
    except FormatError as error:
        from apr.recognize import recognized

        what = recognized(path)
        # A damaged file of a format that names itself is described by the error.
        if not what or error.offset != 0 or os.fspath(path).endswith((".apr", ".gguf", ".safetensors")):
            raise
        raise FormatError(f"{path}: not an .apr file, but {what}", path=path, offset=0) from None


def _refuse_safetensors(path: str) -> None:
    if path.endswith(".safetensors.index.json") and os.path.isfile(path):  # noqa: PTH113 (a Path costs more)
        raise UnsupportedError(
            f"{path}: an index of safetensors files, not an .apr file; convert it with apr convert", path=path
        )

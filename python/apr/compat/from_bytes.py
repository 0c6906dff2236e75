"""Open an `.apr` file that is given as its bytes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apr.container.load import load
from apr.errors import AprError
from apr.path_arguments import looks_like_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.container.tensor_file import TensorFile

# The path in errors about bytes.
_NAME = "<bytes>"


@contextmanager
def opened_bytes(data: bytes) -> Iterator[TensorFile]:
    """Open the bytes of a file. Tensors that are taken from it stay valid after the block.

    Raises:
        AprError: the bytes are not a valid file; `path` is "<bytes>".
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        hint = "; use load_file for a path" if looks_like_path(data) else ""
        raise TypeError(f"data must be the bytes of a file, not {type(data).__name__}{hint}")
    # The core maps files. A memory file is one without a disk, and vanishes with its last mapping.
    memory = os.memfd_create("apr")
    path = f"/proc/self/fd/{memory}"
    try:
        with open(memory, "wb", closefd=False) as contents:
            contents.write(data)
        try:
            file = load(path)
        except AprError as error:
            message = str(error).replace(path, _NAME)
            raise type(error)(message, path=_NAME, tensor=error.tensor, offset=error.offset) from None
    finally:
        os.close(memory)
    with file:
        yield file

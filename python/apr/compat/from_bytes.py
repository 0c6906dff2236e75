"""An `.apr` file that is given as its bytes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apr.container.load import load
from apr.errors import AprError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.container.tensor_file import TensorFile

# What errors name in place of a path.
_NAME = "<bytes>"


@contextmanager
def opened(data: bytes) -> Iterator[TensorFile]:
    """The open file, which lives in memory alone; tensors taken from it stay valid."""
    memory = os.memfd_create("apr")
    path = f"/proc/self/fd/{memory}"
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        try:
            opened = load(path)
        except AprError as error:
            said = str(error).replace(path, _NAME)
            raise type(error)(said, path=_NAME, tensor=error.tensor, offset=error.offset) from None
    finally:
        os.close(memory)
    with opened:
        yield opened

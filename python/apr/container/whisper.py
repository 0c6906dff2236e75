"""Whisper's container under the magic `APR1`: what header and tensor index say; its values are not read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from apr._core import read_whisper
from apr.container.file import TensorInfo

if TYPE_CHECKING:
    from os import PathLike


class WhisperFlags(IntFlag):
    """Bits of the header."""

    HAS_VOCAB = 1 << 0
    HAS_FILTERBANK = 1 << 1


@dataclass(frozen=True, slots=True)
class WhisperFile:
    """What a file says of itself; no file of its writer was to be had, so that nothing else is made of it.

    Attributes:
        version: of the container.
        model: the number of the model's kind.
        quantization: what all values are stored as: "f32", "f16", "int8" or "int4".
        compressed: whether the body is; `tensors` are then not known.
        tensor_count: the number of tensors.
        flags: whether a vocabulary and a filterbank follow the tensors.
        sizes: the model's ten sizes, in the order of the header.
        tensors: an entry each, in the order of the index; offsets as stored.
        nbytes: length of the file.
    """

    version: int
    model: int
    quantization: str
    compressed: bool
    tensor_count: int
    flags: WhisperFlags
    sizes: tuple[int, ...]
    tensors: tuple[TensorInfo, ...]
    nbytes: int


def whisper(path: str | PathLike[str]) -> WhisperFile | None:
    """Header and index of whisper's container; None for a file of any other form.

    Raises:
        FormatError, TruncatedError: header or index lie; with path and byte.
        OSError: as `open` would.
    """
    found = read_whisper(path) if os.path.isfile(path) else None  # noqa: PTH113 (as in `load`)
    if found is None:
        return None
    (version, model, quantization, compressed, count, flags, sizes), rows, nbytes = found
    tensors = tuple(TensorInfo(name, quantization, shape, size, offset) for name, shape, size, offset in rows)
    return WhisperFile(
        version, model, quantization, compressed, count, WhisperFlags(flags), tuple(sizes), tensors, nbytes
    )

"""The structure of a GGUF file of any architecture, read with the `gguf` package and checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from apr.errors import FormatError, TruncatedError

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFReader, ReaderField, ReaderTensor

# What the package raises on damaged files; it has no error class of its own. Arrays nested in arrays end in a
# RecursionError.
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, RecursionError)
# The limit of ggml (GGML_MAX_DIMS).
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Structure:
    """What the header of a GGUF file lists.

    Attributes:
        path: the file.
        version: the version of the format.
        little_endian: whether numbers are in the byte order that all current models have.
        fields: all keys with their values, those of the header under names that start with "GGUF.".
        tensors: the tensors in the order of their bytes, as the `gguf` package lists them.
        data_offset: the first byte after the header and its padding.
        alignment: the number of bytes to whose multiples tensors are padded.
        size: the bytes of the file.
    """

    path: Path
    version: int
    little_endian: bool
    fields: dict[str, Any]
    tensors: list[ReaderTensor]
    data_offset: int
    alignment: int
    size: int

    @property
    def data_end(self) -> int:
        """The byte after the last tensor, without its padding."""
        if not self.tensors:
            return self.data_offset
        return int(self.tensors[-1].data_offset) + int(self.tensors[-1].n_bytes)


def read_structure(path: Path) -> Structure:
    """Read the keys and the list of tensors, and check that the tensors fit the file.

    As in llama.cpp, each tensor starts where the one before it ends, padded to the alignment.

    Raises:
        FormatError: the file is not a valid GGUF file.
        TruncatedError: the file ends before its tensors do.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise FormatError(f"{path}: not a GGUF file (it starts with {magic!r})", path=path, offset=0)
    size = path.stat().st_size
    reader = _open(path, size)
    fields = {key: _contents(path, field) for key, field in reader.fields.items()}
    return Structure(
        path=path,
        version=int(fields["GGUF.version"]),
        # The package's letter for the byte order of this machine; S is the other one.
        little_endian=reader.byte_order == "I",
        fields=fields,
        tensors=list(reader.tensors),
        data_offset=int(reader.data_offset),
        alignment=int(reader.alignment),
        size=size,
    )


def _open(path: Path, size: int) -> GGUFReader:
    from gguf import GGUFReader

    class CheckedReader(GGUFReader):  # type: ignore[misc]
        """A reader that checks the tensors' places before it maps them.

        The package's own error for a file that was cut short is numpy's, about reshaping, without a name.
        """

        def _build_tensors(self, start: int, fields: list[ReaderField]) -> None:
            _check_places(path, size, int(start), int(self.alignment), fields)
            super()._build_tensors(start, fields)

    try:
        return CheckedReader(path)
    except (FormatError, TruncatedError):
        raise
    except _DAMAGE as error:
        raise FormatError(f"{path}: invalid GGUF file: {error}", path=path) from error


def _check_places(path: Path, size: int, start: int, alignment: int, fields: list[ReaderField]) -> None:
    """Check the dimensions, type and place of each tensor.

    Args:
        path: the file.
        size: its bytes.
        start: the first byte of the tensors.
        alignment: the number of bytes to whose multiples tensors are padded.
        fields: the entries as the `gguf` package reads them: the length of the name, the name, the number of
            dimensions, the dimensions (the fastest first), the type, and the offset from `start`.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    expected = start
    for field in fields:
        name = bytes(field.parts[1]).decode(errors="backslashreplace")
        dimensions, kind, offset = field.parts[3].tolist(), int(field.parts[4][0]), int(field.parts[5][0])

        def refuse(problem: str, name: str = name, at: int = int(field.offset)) -> FormatError:
            return FormatError(f"{path}: {name}: {problem}", path=path, tensor=name, offset=at)

        if len(dimensions) > _MAX_DIMENSIONS:
            raise refuse(f"it has {len(dimensions)} dimensions; GGUF allows {_MAX_DIMENSIONS}")
        if kind not in {int(known) for known in GGMLQuantizationType}:
            raise refuse(f"its GGML type has the unknown number {kind}")
        values, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        row = dimensions[0] if dimensions else 1
        if row % values:
            raise refuse(
                f"its rows have {row} values, which is not a multiple of the {values} of a block of "
                f"{GGMLQuantizationType(kind).name}"
            )
        if start + offset != expected:
            raise refuse(
                f"it starts at byte {start + offset}, but the tensor before it ends at {expected}, padding "
                "included"
            )
        end = expected + prod(dimensions) // values * nbytes
        if end > size:
            raise TruncatedError(
                f"{path}: {name} ends at byte {end}, but the file ends at byte {size}; copy it again",
                path=path,
                tensor=name,
                offset=size,
            )
        expected = end + -end % alignment


def _contents(path: Path, field: ReaderField) -> Any:  # noqa: ANN401  (whatever GGUF holds)
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: GGUF key {field.name}: invalid UTF-8 ({error.reason})",
            path=path,
            offset=int(field.offset),
        ) from None


def one_number(value: object) -> object:
    """Return the number of a key that lists the same one for every layer; any other value as it is."""
    if isinstance(value, list) and value and all(type(item) in {int, float} for item in value):
        return value[0] if all(item == value[0] for item in value) else value
    return value

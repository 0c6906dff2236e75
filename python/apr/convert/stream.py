"""A model on its way between two formats: tensors as streams of chunks, so that none is in memory whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from apr.container.byte_dtypes import nbytes
from apr.container.dtypes import FLOATS, NUMPY, QUANTIZED
from apr.container.narrow import check_range, narrowed
from apr.container.save import TensorSpec
from apr.errors import FormatError, UnsupportedError, WeightsError
from apr.model.match import match_names
from apr.model.names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile
    from apr.gguf.writer import GgufOutput
    from apr.model.config import ModelConfig

_T = TypeVar("_T", "TensorStream", "GgufOutput")
OnTensor: TypeAlias = "Callable[[str, int, int], None]"
"""A callback that gets (name, number of tensors done, number of tensors) before each tensor is read."""
FloatDtype = Literal["f32", "f16", "bf16"]
_OVERFLOW_ADVICE = (
    "choose a --dtype with a larger range, or pass --allow-overflow to store such values as infinities"
)
# 16 MiB of float32. With the copies of a cast, a conversion then stays below 120 MB (tests/convert).
_CHUNK_VALUES = 4 << 20


@dataclass(frozen=True)
class TensorStream:
    """A tensor whose values are read only when they are written, chunk by chunk."""

    spec: TensorSpec
    """Name, dtype and shape as they will be stored."""
    chunks: Callable[[], Iterator[NDArray[Any]]]
    """Starts to read the values: arrays of any shape that follow one another in row-major order, in the dtype
    of `spec`, or uint8 with the stored bytes if that dtype is quantized or packed."""

    def byte_chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Read the values as flat arrays of bytes."""
        for chunk in self.chunks():
            yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)

    def cast(self, dtype: FloatDtype | None, *, allow_overflow: bool = False) -> TensorStream:
        """Return the tensor rounded to nearest even in `dtype`; integers and quantized tensors stay.

        Reading raises WeightsError at a value beyond the range of `dtype`, unless it may become an infinity.
        """
        if dtype is None or self.spec.dtype not in FLOATS or self.spec.dtype == dtype:
            return self

        def rounded() -> Iterator[NDArray[Any]]:
            for chunk in self.chunks():
                result = narrowed(chunk, NUMPY[dtype])
                if not allow_overflow:
                    check_range(self.spec.name, chunk, result, dtype, _OVERFLOW_ADVICE)
                yield result

        return TensorStream(replace(self.spec, dtype=dtype), rounded)

    def rows(self, name: str, start: int, stop: int) -> TensorStream:
        """Return rows `start` to `stop` as a tensor of their own. Rows before them are read and skipped.

        Raises:
            UnsupportedError: the values are quantized or packed.
        """
        if self.spec.dtype not in NUMPY:
            raise UnsupportedError(
                f"{self.spec.name} has dtype {self.spec.dtype}, whose values share bytes and cannot be split "
                "into the parts of the tensor",
                tensor=self.spec.name,
            )
        row = prod(self.spec.shape[1:])
        first, last = start * row, stop * row

        def chunks() -> Iterator[NDArray[Any]]:
            at = 0
            for chunk in self.chunks():
                values = chunk.reshape(-1)
                part = values[max(0, first - at) : max(0, last - at)]
                if part.size:
                    yield part
                at += values.size
                if at >= last:
                    return

        return TensorStream(replace(self.spec, name=name, shape=(stop - start, *self.spec.shape[1:])), chunks)

    @property
    def numel(self) -> int:
        """The number of values."""
        return prod(self.spec.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that are stored."""
        return nbytes(self.spec.dtype, self.spec.shape)


@dataclass(frozen=True)
class ModelStream:
    """A model that was opened for conversion."""

    metadata: dict[str, Any]
    """The metadata of the .apr file, or config.json where the target is a transformers directory."""
    tensors: list[TensorStream]
    notes: tuple[str, ...] = ()
    """What the user should know about the conversion, one line each."""


def with_progress(tensors: Sequence[_T], name: Callable[[_T], str], on_tensor: OnTensor | None) -> list[_T]:
    """Return tensors that call `on_tensor` before they are read.

    Args:
        tensors: in the order in which they are written.
        name: returns the name of a tensor.
        on_tensor: the callback, or None.
    """
    if on_tensor is None:
        return list(tensors)

    def announced(tensor: _T, done: int) -> _T:
        def chunks() -> Iterator[NDArray[Any]]:
            on_tensor(name(tensor), done, len(tensors))
            yield from tensor.chunks()

        return replace(tensor, chunks=chunks)

    return [announced(tensor, done) for done, tensor in enumerate(tensors)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FormatError: the file holds anything else.
        OSError: the file cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: invalid JSON: {error}", path=path) from None
    if has_lone_surrogate(json.dumps(value, ensure_ascii=False)):
        raise FormatError(f"{path}: a text has a lone surrogate, which UTF-8 cannot encode", path=path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: the JSON is not an object", path=path)
    return value


def has_lone_surrogate(text: str) -> bool:
    """Whether a text cannot be written as UTF-8. Python reads half a surrogate pair from JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def split_into_shards(tensors: Sequence[TensorStream], max_shard_size: int) -> list[list[TensorStream]]:
    """Distribute tensors, in order, to files of at most `max_shard_size` bytes of tensors.

    A tensor that is larger gets a file of its own. Without tensors, there is one empty file.
    """
    shards: list[list[TensorStream]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def chunk_ranges(numel: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of each chunk of `numel` values; starts are divisible by `multiple`.

    Chunks count values and not rows, because a single row may be larger than memory.
    """
    # At least one `multiple`: a head or block is never split, even if it is larger than a chunk.
    step = max(1, _CHUNK_VALUES // multiple) * multiple
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


def stream_stored(file: TensorFile, name: str) -> TensorStream:
    """Return a tensor of an .apr file as it is stored, without dequantizing it."""
    info = file.info(name)
    # Old files hold quantized tensors whose rows are not padded to whole blocks. This version does not write
    # that layout, so they are dequantized.
    if info.dtype in NUMPY or nbytes(info.dtype, info.shape) != info.nbytes:
        return stream_values(file, name)
    stored = file.slice(name)

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(info.nbytes):
            yield stored.stored(start, stop)

    return TensorStream(TensorSpec(name, info.dtype, info.shape), chunks)


def stream_values(file: TensorFile, name: str) -> TensorStream:
    """Return a tensor of an .apr file, dequantized to f32 if it is quantized."""
    stored = file.slice(name)
    dtype = "f32" if stored.dtype in QUANTIZED else stored.dtype
    if dtype not in NUMPY:  # packed values, which are copied as they are
        return stream_stored(file, name)

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(prod(stored.shape)):
            yield stored.flat(start, stop)

    return TensorStream(TensorSpec(name, dtype, stored.shape), chunks)


def split_fused(
    tensors: Sequence[TensorStream], fused: Mapping[str, Mapping[str, int]]
) -> list[TensorStream]:
    """Split the projections that other formats store as one tensor. `joined` is the inverse.

    Args:
        tensors: the tensors of a file.
        fused: the names and rows of the parts of each fused tensor, as `fused_parts` returns them.
    """
    result = []
    for tensor in tensors:
        parts = fused.get(tensor.spec.name, {})
        if sum(parts.values()) != tensor.spec.shape[0]:  # another tensor, or one of another size
            result.append(tensor)
            continue
        start = 0
        for name, rows in parts.items():
            result.append(tensor.rows(name, start, start + rows))
            start += rows
    return result


def joined(name: str, parts: Sequence[TensorStream]) -> TensorStream:
    """Return one tensor with the rows of several, one after another."""
    rows = sum(part.spec.shape[0] for part in parts)

    def chunks() -> Iterator[NDArray[Any]]:
        for part in parts:
            yield from part.chunks()

    first = parts[0].spec
    return TensorStream(replace(first, name=name, shape=(rows, *first.shape[1:])), chunks)


def match_sources(config: ModelConfig, file: TensorFile) -> dict[str, str]:
    """Return the name of the tensor in `file` for each parameter of a decoder, without importing torch.

    Raises:
        WeightsError: the tensors are not those of the model, or a stored head differs from the embedding that
            it is tied to.
    """
    match = match_names(config, file)
    if match.head_copy is not None and not same_values(
        stream_values(file, match.head_copy), stream_values(file, match.sources[EMBEDDING])
    ):
        raise WeightsError(
            f"{file.path}: tie_word_embeddings is true, but {match.head_copy} differs from "
            f"{match.sources[EMBEDDING]}",
            path=file.path,
        )
    return match.sources


def same_values(a: TensorStream, b: TensorStream) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if a.spec.shape != b.spec.shape or a.spec.dtype != b.spec.dtype:
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.byte_chunks(), b.byte_chunks(), strict=True))

"""Write a GGUF file tensor by tensor: keys and tensor descriptions first, then values as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from apr.container.dtypes import NUMPY
from apr.container.narrow import beyond_range, check_range, narrowed
from apr.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf import GGMLQuantizationType, GGUFWriter
    from numpy.typing import NDArray

GgufDtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
"""The dtypes that GGUF files are written in. Those with a q store blocks of 32 values of a row."""

# Where the next tensor starts. The key general.alignment would change it; without the key it is 32.
_ALIGNMENT = 32
# Bytes at the start of a block that hold its scale in float16, and its least value where the dtype has one.
_SCALE_BYTES = {"q8_0": 2, "q4_0": 2, "q5_0": 2, "q4_1": 4, "q5_1": 4}
# Values that are quantized at a time: a quarter of a megabyte of float32, which stays in the cache with its
# temporaries.
_QUANTIZED_TOGETHER = 1 << 16


@dataclass(frozen=True)
class GgufOutput:
    """A tensor to write, under its GGUF name."""

    name: str
    shape: tuple[int, ...]
    """The dimensions in row-major order."""
    dtype: GgufDtype
    chunks: Callable[[], Iterator[NDArray[Any]]]
    """Starts to read the values: floating-point arrays of any shape that follow one another in row-major
    order. If `dtype` is quantized, each but the last holds whole blocks."""

    @property
    def nbytes(self) -> int:
        """The number of bytes that are stored, without padding."""
        values, nbytes = _block(self.dtype)
        return prod(self.shape) // values * nbytes

    def byte_chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Read the values and encode them in `dtype`.

        Raises:
            WeightsError: a value is NaN or infinite, or becomes infinite in `dtype`.
        """
        for chunk in self.chunks():
            values = np.ascontiguousarray(chunk).reshape(-1)
            for start in range(0, max(1, values.size), _QUANTIZED_TOGETHER):
                yield self._encode(values[start : start + _QUANTIZED_TOGETHER])

    def dequantized(self) -> GgufOutput:
        """Return the tensor in f32, with the values that it has in `dtype`."""

        def chunks() -> Iterator[NDArray[np.float32]]:
            for chunk in self.chunks():
                yield rounded(chunk, self.dtype)

        return self if self.dtype == "f32" else replace(self, dtype="f32", chunks=chunks)

    def _encode(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        from gguf import quantize

        # Blocks are quantized from float32.
        stored = narrowed(values, NUMPY.get(self.dtype, NUMPY["f32"]))
        if not np.isfinite(stored).all():
            if not np.isfinite(values).all():
                raise WeightsError(f"{self.name}: a value is NaN or infinite", tensor=self.name)
            advice = "pass --dtype bf16 or f32" if self.dtype == "f16" else "a GGUF file cannot hold it"
            check_range(self.name, values, stored, self.dtype, advice)
        if self.dtype not in NUMPY:
            # NumPy would warn of a scale beyond the range, with the package's own line.
            with np.errstate(over="ignore"):
                quantized: NDArray[np.uint8] = quantize(stored[None], _ggml_type(self.dtype))
            self._check_scales(stored, quantized)
            stored = quantized.reshape(-1)
        return stored.view(np.uint8)

    def _check_scales(self, values: NDArray[np.float32], quantized: NDArray[np.uint8]) -> None:
        """Refuse blocks whose scale is beyond the range of float16: all their values would be NaN."""
        size, nbytes = _block(self.dtype)
        blocks = quantized.reshape(-1, nbytes)
        beyond = ~np.isfinite(blocks[:, : _SCALE_BYTES[self.dtype]].copy().view(np.float16)).all(axis=1)
        if beyond.any():
            block = values.reshape(-1, size)[beyond][0]
            value = float(block[np.abs(block).argmax()])
            problem = beyond_range(self.name, value, self.dtype, "pass --dtype bf16 or f32")
            raise WeightsError(problem, tensor=self.name)


def stored_dtype(shape: Sequence[int], dtype: GgufDtype) -> GgufDtype:
    """Return the dtype in which llama.cpp stores a tensor of a model in `dtype`.

    Norms and biases are f32: llama.cpp adds and multiplies only in it. A matrix whose rows do not divide
    into blocks is f16, as from llama.cpp's own quantizer.

    Args:
        shape: the dimensions in row-major order.
        dtype: the dtype of the model's matrices.
    """
    if len(shape) < 2:
        return "f32"
    return "f16" if shape[-1] % _block(dtype)[0] else dtype


def rounded(values: NDArray[Any], dtype: GgufDtype) -> NDArray[np.float32]:
    """Return values as a file in `dtype` has them.

    Args:
        values: floating-point values of any shape, whole blocks of `dtype` in row-major order.
        dtype: the dtype in the file.
    """
    from gguf import dequantize, quantize

    single: NDArray[np.float32] = narrowed(values, NUMPY.get(dtype, NUMPY["f32"])).astype(np.float32)
    if dtype in NUMPY:
        return single
    kind, flat = _ggml_type(dtype), single.reshape(-1)
    parts = [
        dequantize(quantize(flat[None, start : start + _QUANTIZED_TOGETHER], kind), kind)[0]
        for start in range(0, flat.size, _QUANTIZED_TOGETHER)
    ]
    return np.concatenate(parts).reshape(values.shape)


def write(
    file: BinaryIO, architecture: str, keys: Mapping[str, object], tensors: Sequence[GgufOutput]
) -> None:
    """Write a whole GGUF file.

    The values are read while they are written, so that memory does not grow with the file.

    Args:
        file: an empty file, opened for writing.
        architecture: the value of `general.architecture`.
        keys: all other keys. The type in the file follows from the value: uint32 for int, float32 for float,
            and an array for a list, with int32 for int.
        tensors: in the order of the file.

    Raises:
        WeightsError: a value cannot be stored in the dtype of its tensor.
        OSError: writing failed.
    """
    from gguf import GGUFWriter
    from gguf.gguf_writer import WriterState

    writer = GGUFWriter(None, architecture)
    for key, value in keys.items():
        _add_key(writer, key, value)
    for tensor in tensors:
        # The dtype in the second place decides only where the last argument does not.
        kind = _ggml_type(tensor.dtype)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("<f4"), tensor.nbytes, raw_dtype=kind)
    # The package opens files by name. This one has none yet: it gets its name when it is complete.
    writer.fout, writer.state = [file], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    _pad(file)
    for tensor in tensors:
        file.writelines(chunk.data for chunk in tensor.byte_chunks())
        _pad(file)


def file_type(dtype: GgufDtype) -> int:
    """Return the value of `general.file_type` for a model whose matrices have a dtype."""
    from gguf import LlamaFileType

    return int(LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])


def _add_key(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        raise TypeError(f"{key}: a GGUF key cannot hold {type(value).__name__}")


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _block(dtype: GgufDtype) -> tuple[int, int]:
    """Return the number of values and of bytes of a block; of a dtype without blocks, of one value."""
    from gguf import GGML_QUANT_SIZES

    values, nbytes = GGML_QUANT_SIZES[_ggml_type(dtype)]
    return values, nbytes


def _ggml_type(dtype: GgufDtype) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[dtype.upper()]

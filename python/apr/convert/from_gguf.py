"""Read a GGUF file, with transformers' tensor names, row order and sizes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.save import TensorSpec
from apr.convert.stream import ModelStream, TensorStream, chunk_ranges
from apr.gguf.metadata import model_metadata
from apr.gguf.reader import GgufFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.gguf.reader import GgufTensor

# GGML's quantized types that .apr stores with the same bytes. The ids 2 to 9, which are q4_0 to q8_1 in GGML,
# stand for types of its own in .apr.
_SAME_BYTES = {"Q4_K": "q4_k", "Q6_K": "q6_k"}


def read(path: Path, *, keep_quantized: bool, tokenizer: bool) -> ModelStream:
    """Read a GGUF file of the Llama or Qwen2 family.

    Quantized tensors are dequantized to float32, with the same bits as the gguf package gives.

    Args:
        path: the file.
        keep_quantized: keep q4_k and q6_k matrices as stored.
        tokenizer: whether to include the tokenizer.

    Raises:
        FormatError: the structure of the file is invalid.
        UnsupportedError: the file has a family, a feature or a tensor that is not supported.
    """
    file = GgufFile(path)
    metadata = {
        key: value
        for key, value in model_metadata(file).items()
        if tokenizer or not key.startswith("tokenizer.")
    }
    tensors = [_stream(tensor, keep_quantized=keep_quantized) for tensor in file.tensors.values()]
    return ModelStream(metadata, tensors)


def _stream(tensor: GgufTensor, *, keep_quantized: bool) -> TensorStream:
    # Norms and biases are used whole and are small; they are never kept quantized.
    kept = None
    if keep_quantized and len(tensor.shape) > 1:
        kept = _SAME_BYTES.get(tensor.source.tensor_type.name)
    read_range = tensor.values if kept is None else tensor.stored

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(prod(tensor.shape), tensor.unit):
            yield read_range(start, stop)

    return TensorStream(TensorSpec(tensor.name, kept or tensor.dtype, tensor.shape), chunks)

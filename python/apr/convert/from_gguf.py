"""Read a GGUF file, with transformers' tensor names, row order and sizes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.save import TensorSpec
from apr.convert.stream import ModelStream, TensorStream, chunk_ranges, same_values, split_fused
from apr.errors import RefusedError
from apr.gguf.metadata import model_metadata
from apr.gguf.names import STORED_HEADS
from apr.gguf.reader import GgufFile
from apr.model.config import ModelConfig
from apr.model.families import FAMILIES
from apr.model.names import EMBEDDING, HEAD, fused_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.gguf.reader import GgufTensor

# GGML's quantized types that .apr stores with the same bytes. The ids 2 to 9, which are q4_0 to q8_1 in GGML,
# stand for types of its own in .apr.
_SAME_BYTES = {"Q4_K": "q4_k", "Q6_K": "q6_k"}


# Tensors that are split into several, of which only the values can be cut.
_FUSED = ("qkv_proj.weight", "gate_up_proj.weight")


def read(path: Path, *, keep_quantized: bool, tokenizer: bool) -> ModelStream:
    """Read a GGUF file of one of the families in `apr.gguf.names`.

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
    metadata["hf_architecture"] = FAMILIES[str(metadata["hf_model_type"])].class_name
    tensors = [_stream(tensor, keep_quantized=keep_quantized) for tensor in file.tensors.values()]
    try:
        fused = fused_parts(ModelConfig.from_metadata(metadata))
    except RefusedError:  # an incomplete file, which is checked later
        fused = {}
    if file.architecture in STORED_HEADS:
        tensors = _without_tied_head(metadata, tensors)
    return ModelStream(metadata, split_fused(tensors, fused))


def _without_tied_head(metadata: dict[str, Any], tensors: list[TensorStream]) -> list[TensorStream]:
    """Leave out a head that is equal to the embedding: llama.cpp needs it as a tensor even if it is tied."""
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    head, embedding = by_name.get(HEAD), by_name.get(EMBEDDING)
    if head is None or embedding is None or not same_values(head, embedding):
        return tensors
    metadata |= {"tie_word_embeddings": True, "param_count": metadata["param_count"] - head.numel}
    return [tensor for tensor in tensors if tensor is not head]


def _stream(tensor: GgufTensor, *, keep_quantized: bool) -> TensorStream:
    # Norms and biases are used whole and are small; they are never kept quantized.
    kept = None
    if keep_quantized and len(tensor.shape) > 1 and not tensor.name.endswith(_FUSED):
        kept = _SAME_BYTES.get(tensor.source.tensor_type.name)
    read_range = tensor.values if kept is None else tensor.stored

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(prod(tensor.shape), tensor.unit):
            yield read_range(start, stop)

    return TensorStream(TensorSpec(tensor.name, kept or tensor.dtype, tensor.shape), chunks)

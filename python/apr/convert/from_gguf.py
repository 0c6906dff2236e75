"""A GGUF file as a model on its way: names, rows and sizes as transformers has them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.save import TensorSpec
from apr.convert.stream import Item, Model, stretches
from apr.gguf.metadata import model_metadata
from apr.gguf.reader import GgufFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.gguf.reader import GgufTensor

# GGML's types that .apr stores as they are, where that is asked for.
_KEPT = {"Q4_K": "q4_k", "Q6_K": "q6_k"}


def read(path: Path, *, keep_quantized: bool, tokenizer: bool) -> Model:
    """A GGUF file of the Llama or Qwen2 family; quantized values as float32, bit for bit the gguf package's.

    Args:
        path: the file.
        keep_quantized: leave q4_k and q6_k tensors of two dimensions as they are.
        tokenizer: whether the tokenizer goes along.

    Raises:
        FormatError: the file's structure lies.
        UnsupportedError: a family, a feature or a tensor that has no place in a Llama or Qwen2 decoder.
    """
    file = GgufFile(path)
    metadata = {
        key: value
        for key, value in model_metadata(file).items()
        if tokenizer or not key.startswith("tokenizer.")
    }
    return Model(metadata, [_item(tensor, keep=keep_quantized) for tensor in file.tensors.values()])


def _item(tensor: GgufTensor, *, keep: bool) -> Item:
    kept = _KEPT.get(tensor.source.tensor_type.name) if keep and len(tensor.shape) > 1 else None
    read = tensor.values if kept is None else tensor.stored

    def parts() -> Iterator[NDArray[Any]]:
        for start, stop in stretches(prod(tensor.shape), tensor.unit):
            yield read(start, stop)

    return Item(TensorSpec(tensor.name, kept or tensor.dtype, tensor.shape), parts)

"""Write a GGUF file for llama.cpp and Ollama: sizes, rotary embedding, tokenizer, tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.dtypes import QUANTIZED
from apr.convert.gguf_tokenizer import tokenizer_keys
from apr.convert.stream import chunk_ranges, same_values, stream_values
from apr.errors import RefusedError, WeightsError
from apr.files import path_of, replacing
from apr.gguf.metadata import HIGH_FACTOR, LOW_FACTOR, ORIGINAL_CONTEXT, llama3_factors
from apr.gguf.names import gguf_name, permute
from apr.gguf.reader import ROPE_FACTORS
from apr.gguf.writer import GgufOutput, file_type, stored_dtype
from apr.gguf.writer import write as write_file
from apr.model.config import ModelConfig
from apr.model.match import listed, match_names, permuted_heads
from apr.model.names import EMBEDDING, HEADS, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile
    from apr.convert.stream import OnTensor
    from apr.gguf.writer import GgufDtype

# Dtypes of .apr that GGUF files keep. llama.cpp multiplies with none of the others.
_KEPT: dict[str, GgufDtype] = {"f32": "f32", "f16": "f16", "bf16": "bf16"}


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp calls a family, and what its files have beyond the keys that all files have."""

    name: str
    keys: Callable[[ModelConfig], dict[str, object]] = field(default=lambda _: {})


# A family that is not here cannot be written. Which of them change the order of q and k rows is in
# `apr.gguf.names.PERMUTED`, because the reader needs it too.
_ARCHITECTURES = {
    "llama": _Architecture("llama"),
    "qwen2": _Architecture("qwen2"),
}


@dataclass(frozen=True)
class GgufModel:
    """A model that is ready to be written as GGUF."""

    config: ModelConfig
    architecture: str
    keys: dict[str, object]
    tensors: list[GgufOutput]
    dtypes: dict[str, GgufDtype]
    """The dtype in the file of each parameter of the decoder, by its transformers name."""
    notes: tuple[str, ...]


def write(
    model: GgufModel,
    target: Path,
    *,
    on_tensor: OnTensor | None,
    before_commit: Callable[[Path], None] | None = None,
) -> None:
    """Write one file atomically.

    Args:
        model: what to write.
        target: the file.
        on_tensor: called before each tensor is read.
        before_commit: called with a path to the complete file before it gets its name. If it raises, an
            earlier file at `target` is unchanged.

    Raises:
        WeightsError: a value cannot be stored in the dtype of its tensor.
        OSError: the file cannot be written; an earlier file at `target` is unchanged.
    """
    total = len(model.tensors)
    tensors = [_with_progress(t, n, total, on_tensor) for n, t in enumerate(model.tensors)]
    with replacing(target) as file:
        write_file(file, model.architecture, model.keys, tensors)
        if before_commit is not None:
            file.flush()
            before_commit(path_of(file))


def read(file: TensorFile, *, dtype: GgufDtype | None, tokenizer: bool) -> GgufModel:
    """Prepare the model of an .apr file to be written as GGUF.

    Training state and a copy of a tied embedding are left out.

    Args:
        file: the opened file.
        dtype: the dtype of matrices; None keeps f32, f16 and bf16, and stores other dtypes as f32. Norms and
            biases are always f32.
        tokenizer: whether to include the tokenizer.

    Raises:
        RefusedError: the metadata do not describe a model, or llama.cpp cannot run it.
        WeightsError: the tensors are not those of the model that the metadata describe.
    """
    head_present = any(name in file and not file.info(name).tied for name in HEADS)
    try:
        config = ModelConfig.from_metadata(file.metadata, head_present=head_present)
        architecture = _architecture(config)
    except RefusedError as error:
        raise type(error)(f"{file.path}: {error}") from None
    match = match_names(config, file)
    if match.head_copy is not None and not same_values(
        stream_values(file, match.head_copy), stream_values(file, match.sources[EMBEDDING])
    ):
        raise WeightsError(
            f"{file.path}: tie_word_embeddings is true, but {match.head_copy} differs from "
            f"{match.sources[EMBEDDING]}"
        )
    outputs = {
        parameter: _tensor(file, match.sources[parameter], parameter, shape, config, dtype)
        for parameter, shape in parameter_shapes(config).items()
    }
    tensors = list(outputs.values())
    # The dtype of most values names the file, as in llama.cpp's own files.
    counts: dict[GgufDtype, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
    most = max(counts, key=counts.__getitem__) if dtype is None else dtype
    keys = _general_keys(file, most) | {
        f"{architecture.name}.{key}": value
        for key, value in (_common_keys(config) | architecture.keys(config)).items()
    }
    notes = [*_notes(file, match.sources.values(), tensors, dtype)]
    if tokenizer:
        tokens, token_notes = tokenizer_keys(file.metadata, config.vocab_size)
        keys |= tokens
        notes += token_notes
    else:
        keys["tokenizer.ggml.model"] = "none"
    return GgufModel(
        config=config,
        architecture=architecture.name,
        keys=keys,
        tensors=[*_factors(config), *tensors],
        dtypes={parameter: tensor.dtype for parameter, tensor in outputs.items()},
        notes=tuple(notes),
    )


def _architecture(config: ModelConfig) -> _Architecture:
    if config.family not in _ARCHITECTURES:
        raise RefusedError(
            f"llama.cpp has no architecture for {config.family}; GGUF files can be written for "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[config.family]


def _general_keys(file: TensorFile, most: GgufDtype) -> dict[str, object]:
    from gguf import GGML_QUANT_VERSION

    keys: dict[str, object] = {"general.type": "model"}
    for key in ("name", "license", "description"):
        if isinstance(file.metadata.get(key), str):
            keys[f"general.{key}"] = file.metadata[key]
    return keys | {"general.file_type": file_type(most), "general.quantization_version": GGML_QUANT_VERSION}


def _common_keys(config: ModelConfig) -> dict[str, object]:
    """Return the keys that llama.cpp reads for every architecture, without the prefix of the architecture."""
    keys: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        # llama.cpp needs only the factors in ROPE_FACTORS. From these, the parameters can be read back.
        keys |= {
            ORIGINAL_CONTEXT: scaling.original_max_position_embeddings,
            LOW_FACTOR: scaling.low_freq_factor,
            HIGH_FACTOR: scaling.high_freq_factor,
        }
    return keys


def _factors(config: ModelConfig) -> list[GgufOutput]:
    """Return Llama 3's divisors of the rotary frequencies as a tensor, if the model has them."""
    scaling = config.rope_scaling
    if scaling is None:
        return []
    factors = llama3_factors(
        config.rope_theta,
        config.head_dim,
        scaling.factor,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
    )
    return [GgufOutput(ROPE_FACTORS, factors.shape, "f32", lambda: iter((factors,)))]


def _tensor(
    file: TensorFile,
    source: str,
    parameter: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    dtype: GgufDtype | None,
) -> GgufOutput:
    name = gguf_name(parameter)
    assert name is not None, parameter
    stored = file.slice(source)
    # Rows move within a head, so that a chunk holds whole heads.
    heads = permuted_heads(config, name, parameter)
    if heads is None or permuted_heads(config, source, parameter) is not None:
        unit, heads = 1, None
    else:
        unit = prod(shape) // heads

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(prod(shape), unit):
            values = stored.flat(start, stop)
            if heads is not None:
                values = permute(values.reshape(-1, *shape[1:]), (stop - start) // unit)
            yield values

    chosen = stored_dtype(shape, dtype or _KEPT.get(stored.dtype, "f32"))
    return GgufOutput(name, shape, chosen, chunks)


def _notes(
    file: TensorFile, sources: Iterable[str], tensors: Sequence[GgufOutput], dtype: GgufDtype | None
) -> Iterator[str]:
    fallen = [tensor for tensor in tensors if len(tensor.shape) > 1 and dtype not in {None, tensor.dtype}]
    if fallen:
        yield (
            f"{len(fallen)} tensors are stored as {fallen[0].dtype}, because the blocks of {dtype} do not "
            f"divide their rows: {listed([f'{t.name} (rows of {t.shape[-1]})' for t in fallen])}"
        )
    quantized = sum(1 for source in sources if file.info(source).dtype in QUANTIZED)
    if quantized and dtype is None:
        yield f"{quantized} quantized tensors were written as float32; --dtype q8_0 makes the file smaller"


def _with_progress(tensor: GgufOutput, done: int, total: int, on_tensor: OnTensor | None) -> GgufOutput:
    if on_tensor is None:
        return tensor

    def chunks() -> Iterator[NDArray[Any]]:
        on_tensor(tensor.name, done, total)
        yield from tensor.chunks()

    return GgufOutput(tensor.name, tensor.shape, tensor.dtype, chunks)

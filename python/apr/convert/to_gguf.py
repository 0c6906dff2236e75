"""Write a GGUF file for llama.cpp and Ollama: sizes, rotary embedding, tokenizer, tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.container.dtypes import FLOATS, QUANTIZED
from apr.container.save import TensorSpec
from apr.convert.gguf_families import architecture_keys, rope_tensors
from apr.convert.gguf_tokenizer import tokenizer_keys
from apr.convert.stream import TensorStream, chunk_ranges, joined, match_sources, stream_values, with_progress
from apr.errors import WeightsError, about
from apr.files import path_of, replacing
from apr.gguf.names import ONE_PLUS, STORED_HEADS, gguf_name, permute
from apr.gguf.writer import GgufOutput, file_type, stored_dtype
from apr.gguf.writer import write as write_file
from apr.model.config import ModelConfig
from apr.model.families import FAMILIES
from apr.model.match import has_head, listed, permuted_heads
from apr.model.names import EMBEDDING, HEAD, fused_parts, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile
    from apr.convert.stream import OnTensor
    from apr.gguf.writer import GgufDtype

# Dtypes of .apr that GGUF files keep. llama.cpp multiplies with none of the others.
_KEPT: dict[str, GgufDtype] = {"f32": "f32", "f16": "f16", "bf16": "bf16"}


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
    tensors = with_progress(model.tensors, lambda tensor: tensor.name, on_tensor)
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
        WeightsError: the tensors are not those of the model that the metadata describe, or not floats.
    """
    with about(file.path):
        config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        keys, limits = architecture_keys(config)
    architecture = FAMILIES[config.family].gguf
    sources = match_sources(config, file)
    written = dict(sources)
    if config.tie_word_embeddings and architecture in STORED_HEADS:
        written[HEAD] = sources[EMBEDDING]
    outputs = _tensors(file, written, config, dtype)
    tensors = list(dict.fromkeys(outputs.values()))
    # The dtype of most values names the file, as in llama.cpp's own files.
    counts: dict[GgufDtype, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
    most = max(counts, key=counts.__getitem__) if dtype is None else dtype
    keys = _general_keys(file, most) | {f"{architecture}.{key}": value for key, value in keys.items()}
    notes = [*limits, *_notes(file, sources.values(), tensors, dtype)]
    if tokenizer:
        tokens, token_notes = tokenizer_keys(file.metadata, config.vocab_size)
        keys |= tokens
        notes += token_notes
    else:
        keys["tokenizer.ggml.model"] = "none"
    return GgufModel(
        config=config,
        architecture=architecture,
        keys=keys,
        tensors=[*_factors(config), *tensors],
        dtypes={parameter: tensor.dtype for parameter, tensor in outputs.items()},
        notes=tuple(notes),
    )


def _general_keys(file: TensorFile, most: GgufDtype) -> dict[str, object]:
    from gguf import GGML_QUANT_VERSION

    keys: dict[str, object] = {"general.type": "model"}
    for key in ("name", "license", "description"):
        if isinstance(file.metadata.get(key), str):
            keys[f"general.{key}"] = file.metadata[key]
    return keys | {"general.file_type": file_type(most), "general.quantization_version": GGML_QUANT_VERSION}


def _factors(config: ModelConfig) -> list[GgufOutput]:
    """Return the divisors of rotary frequencies as tensors."""

    def output(name: str, values: NDArray[np.float32]) -> GgufOutput:
        return GgufOutput(name, values.shape, "f32", lambda: iter((values,)))

    return [output(name, values) for name, values in rope_tensors(config).items()]


def _tensors(
    file: TensorFile, sources: Mapping[str, str], config: ModelConfig, dtype: GgufDtype | None
) -> dict[str, GgufOutput]:
    """Return the tensor of the GGUF file that holds each parameter; several may be in one."""
    architecture = FAMILIES[config.family].gguf
    shapes = parameter_shapes(config)
    if HEAD in sources:
        shapes[HEAD] = shapes[EMBEDDING]
    streams = {name: _stream(file, sources[name], name, shape, config) for name, shape in shapes.items()}
    holders = {part: fused for fused, parts in fused_parts(config).items() for part in parts}
    for fused, parts in fused_parts(config).items():
        streams[fused] = joined(fused, [streams.pop(part) for part in parts])
    outputs = {}
    for name, stream in streams.items():
        written = gguf_name(name, architecture)
        assert written is not None, name
        chosen = stored_dtype(stream.spec.shape, dtype or _KEPT.get(stream.spec.dtype, "f32"))
        outputs[name] = GgufOutput(written, stream.spec.shape, chosen, stream.chunks)
    return {name: outputs[holders.get(name, name)] for name in shapes}


def _stream(
    file: TensorFile, source: str, parameter: str, shape: tuple[int, ...], config: ModelConfig
) -> TensorStream:
    """Return a parameter with its rows in GGUF's order, and as GGUF has the weights of norms."""
    architecture = FAMILIES[config.family].gguf
    stream = stream_values(file, source)
    if stream.spec.dtype not in FLOATS:
        raise WeightsError(
            f"{file.path}: {source} has dtype {stream.spec.dtype}, but weights are floating-point numbers",
            path=file.path,
            tensor=source,
        )
    stored, numel = file.slice(source), prod(shape)
    heads = permuted_heads(config, f"{parameter} in GGUF", parameter)
    if permuted_heads(config, source, parameter) is not None:
        heads = None  # the .apr file has GGUF's order already
    # Rows move within a head, so that a chunk holds whole heads.
    unit = 1 if heads is None else numel // heads
    add = architecture in ONE_PLUS and parameter.endswith("norm.weight")

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(numel, unit):
            values = stored.flat(start, stop)
            if heads is not None:
                values = permute(values.reshape(-1, *shape[1:]), (stop - start) // unit)
            yield values.astype(np.float32) + 1 if add else values

    return TensorStream(TensorSpec(parameter, "f32" if add else stream.spec.dtype, shape), chunks)


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

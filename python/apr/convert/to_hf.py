"""Write a transformers model directory: config.json, safetensors files, tokenizer files.

If the metadata keep config.json and the tokenizer files, as `from_hf` stores them, they are written
unchanged.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_CONFIG, HF_GENERATION, HF_TOKENIZER
from apr.convert import to_safetensors
from apr.convert.directory import replacing_directory
from apr.convert.from_hf import read_config
from apr.convert.hf_files import (
    BASE64,
    CONFIG,
    GENERATION,
    WEIGHTS,
    content_of,
    from_json,
)
from apr.convert.stream import (
    ModelStream,
    TensorStream,
    chunk_ranges,
    joined,
    match_sources,
    split_into_shards,
    stream_values,
    with_progress,
)
from apr.errors import FormatError, RefusedError, UnsupportedError
from apr.files import write_atomically
from apr.gguf.names import SPECIAL_TOKENS, unpermute
from apr.model.config import ModelConfig, names_family
from apr.model.families import FAMILIES
from apr.model.match import has_head, permuted_heads
from apr.model.names import TRAINING_PREFIX, fused_parts, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile
    from apr.convert.stream import FloatDtype, OnTensor

# Metadata that transformers writes to each safetensors file and requires when it loads one.
_SAFETENSORS_TEXTS = {"format": "pt"}
_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def is_described(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata name the architecture that the tensors belong to."""
    return isinstance(metadata.get(HF_CONFIG), dict) or names_family(metadata)


def write(
    file: TensorFile,
    directory: Path,
    *,
    dtype: FloatDtype | None,
    allow_overflow: bool,
    max_shard_size: int,
    tokenizer: bool,
    force: bool,
    on_tensor: OnTensor | None,
) -> ModelStream:
    """Write the model of an .apr file as a directory that transformers loads.

    Training state and a copy of a tied embedding are left out. Projections that transformers fuses are
    joined.
    GGUF's names and its row order of the q and k projections are translated. Quantized tensors are written as
    float32.

    Args:
        file: the opened file.
        directory: the directory to write.
        dtype: the dtype of floating-point tensors; None keeps them as stored.
        allow_overflow: whether values beyond the range of `dtype` become infinities.
        max_shard_size: bytes of tensors per safetensors file.
        tokenizer: whether to write the tokenizer files.
        force: whether to replace an existing model directory.
        on_tensor: called before each tensor is read.

    Returns:
        The model that was written, with config.json as metadata.

    Raises:
        RefusedError: the metadata lack a size or contradict themselves, or the directory may not be replaced.
        WeightsError: the tensors are not those of the model that the metadata describe, or a value is beyond
            the range of `dtype`.
        OSError: the directory cannot be written; nothing of it is left.
    """
    model = _as_hf(file)
    cast = [tensor.cast(dtype, allow_overflow=allow_overflow) for tensor in model.tensors]
    tensors = with_progress(cast, lambda tensor: tensor.spec.name, on_tensor)
    config = model.metadata | _config_dtype(model.metadata, tensors)
    tokenizer_files, notes = _tokenizer_files(file) if tokenizer else ({}, ())
    shards = split_into_shards(tensors, max_shard_size)
    with replacing_directory(directory, force=force) as new:
        write_atomically(new / CONFIG, _json_text(config))
        if isinstance(file.metadata.get(HF_GENERATION), dict):
            write_atomically(new / GENERATION, _json_text(file.metadata[HF_GENERATION]))
        for name, content in tokenizer_files.items():
            (new / name).parent.mkdir(exist_ok=True)
            write_atomically(new / name, content)
        if len(shards) == 1:
            to_safetensors.write(new / WEIGHTS, tensors, _SAFETENSORS_TEXTS)
        else:
            to_safetensors.write_several(new, shards, {}, _SAFETENSORS_TEXTS)
    return ModelStream(config, tensors, (*model.notes, *notes))


def _json_text(value: dict[str, Any]) -> bytes:
    """Return the text of a configuration, with Infinity and NaN where it had them."""
    return (json.dumps(from_json(value), indent=2) + "\n").encode()


def _as_hf(file: TensorFile) -> ModelStream:
    """Return the model as transformers has it: config.json as metadata, tensor names, shapes, row order."""
    kept = file.metadata.get(HF_CONFIG)
    head_present = has_head(file)
    try:
        config = ModelConfig.from_metadata(file.metadata, head_present=head_present)
    except RefusedError as error:
        # A kept configuration that is a decoder's was valid once: the metadata were changed since.
        if not isinstance(kept, dict) or read_config(kept, head_present=head_present)[0] is not None:
            raise type(error)(
                f"{file.path}: {error}; to convert the tensors alone, choose a target that ends in "
                ".safetensors, or pass --max-shard-size",
                path=file.path,
            ) from None
        # apr does not know the architecture, but transformers gets back what it wrote.
        names = [name for name in file if not name.startswith(TRAINING_PREFIX)]
        return ModelStream(dict(kept), [stream_values(file, name) for name in names])
    shapes = parameter_shapes(config)
    parameters = {source: name for name, source in match_sources(config, file).items()}
    # In the order of the file, which decides what goes into which shard.
    tensors = [
        _stream(file, source, parameters[source], shapes[parameters[source]], config)
        for source in file
        if source in parameters
    ]
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    for fused, parts in fused_parts(config).items():
        pieces = [by_name[name] for name in parts]
        # At the place of the first one.
        tensors[tensors.index(pieces[0])] = joined(fused, pieces)
        tensors = [tensor for tensor in tensors if tensor not in pieces]
    quantized = sum(1 for source in parameters if file.info(source).dtype.startswith("q"))
    notes = (f"{quantized} quantized tensors were written as float32",) if quantized else ()
    return ModelStream(_config_json(config, file.metadata, kept), tensors, notes)


def _stream(
    file: TensorFile, source: str, parameter: str, shape: tuple[int, ...], config: ModelConfig
) -> TensorStream:
    tensor = stream_values(file, source)
    tensor = replace(tensor, spec=replace(tensor.spec, name=parameter, shape=shape))
    if permuted_heads(config, source, parameter) is None:
        return tensor
    stored = file.slice(source)
    # Rows move within a head, so a chunk holds whole heads.
    head_size = config.head_dim * prod(shape[1:])

    def chunks() -> Iterator[NDArray[Any]]:
        for start, stop in chunk_ranges(prod(shape), head_size):
            rows = stored.flat(start, stop).reshape(-1, *shape[1:])
            yield unpermute(rows, (stop - start) // head_size)

    return replace(tensor, chunks=chunks)


def _config_json(config: ModelConfig, metadata: Mapping[str, Any], kept: object) -> dict[str, Any]:
    """Return config.json: as it was read, unless the metadata describe another model since."""
    original = kept if isinstance(kept, dict) else {}
    try:
        head_present = not config.tie_word_embeddings
        if ModelConfig.from_hf(original, head_present=head_present) == config:
            return dict(original)
    except RefusedError:
        pass
    family, switches = FAMILIES[config.family], config.switches()
    # Later entries win: defaults, then what config.json had, then what the metadata say now.
    result: dict[str, Any] = {
        family.activation_key: family.activation,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",  # replaced by `_config_dtype`
        **{f"{name}_id": _token_id(metadata, name) for name in ("bos_token", "eos_token", "pad_token")},
        # transformers 5 keeps rope_theta in rope_parameters, where it would contradict the one below.
        **{key: value for key, value in original.items() if key != "rope_parameters"},
        "architectures": [family.class_name],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_scaling": None,
        **switches,
    }
    return result


def _token_id(metadata: Mapping[str, Any], name: str) -> object:
    """Return the id of a special token for config.json, or a list of ids if several end a text."""
    own = metadata.get(f"{name}_id", metadata.get(f"tokenizer.{SPECIAL_TOKENS[name]}_token_id"))
    if name != "eos_token" or type(own) is not int:
        return own
    # llama.cpp stops at the end of a turn and of a message too.
    ends = (own, *(metadata.get(f"tokenizer.{end}_token_id") for end in ("eot", "eom")))
    several = list(dict.fromkeys(id_ for id_ in ends if type(id_) is int))
    return several if len(several) > 1 else own


def _config_dtype(config: Mapping[str, Any], tensors: Sequence[TensorStream]) -> dict[str, str]:
    """Return the dtype of most values, under the keys for it that config.json already has."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.spec.dtype] = counts.get(tensor.spec.dtype, 0) + tensor.numel
    # Of values and not of tensors: norms often stay in f32 beside bf16 matrices.
    most = max(counts, key=lambda dtype: counts[dtype], default="f32")
    name = _TORCH_NAMES.get(most, "float32")
    # transformers 4 writes torch_dtype, transformers 5 dtype.
    return {key: name for key in ("dtype", "torch_dtype") if config.get(key) is not None}


def _tokenizer_files(file: TensorFile) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the tokenizer files, kept or rebuilt from the vocabulary, and notes for the user."""
    kept = file.metadata.get(HF_TOKENIZER)
    if isinstance(kept, dict):
        return {name: _kept_content(file.path, name, value) for name, value in kept.items()}, ()
    if "tokenizer.vocabulary" not in file.metadata:
        return {}, ("no tokenizer was written, because the file has none",)
    from apr.data.tokenizers import load_tokenizer

    try:
        loaded = load_tokenizer(file.path)
    except (FormatError, UnsupportedError) as error:
        return {}, (f"no tokenizer was written: {error}",)
    # load_tokenizer sets it, so that special tokens in a corpus are plain text. In transformers they are ids.
    loaded.tokenizer.encode_special_tokens = False
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    token_of = {id_: token for token, id_ in loaded.tokenizer.get_vocab().items()}
    for name, key in SPECIAL_TOKENS.items():
        id_ = file.metadata.get(f"tokenizer.{key}_token_id")
        if type(id_) is int and id_ in token_of:
            config[name] = token_of[id_]
    if isinstance(file.metadata.get("chat_template"), str):
        config["chat_template"] = file.metadata["chat_template"]
    files = {
        "tokenizer.json": loaded.tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }
    return files, (() if loaded.note is None else (loaded.note,))


def _kept_content(path: str, name: str, value: object) -> bytes:
    """Return the bytes of a tokenizer file that the metadata keep."""
    # Only known names are written: metadata could name any path.
    try:
        kind = content_of(name)
        if kind == "text" and isinstance(value, str):
            return value.encode()
        if kind == "binary" and isinstance(value, dict) and isinstance(value.get(BASE64), str):
            return base64.b64decode(value[BASE64], validate=True)
    except ValueError as error:  # a lone surrogate, or invalid base64
        raise RefusedError(f"{path}: metadata key {HF_TOKENIZER}: {name}: {error}", path=path) from None
    raise RefusedError(
        f"{path}: metadata key {HF_TOKENIZER}: {name!r} is not a valid tokenizer file", path=path
    )

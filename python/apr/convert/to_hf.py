"""Write a transformers model directory: config.json, safetensors files, tokenizer files.

config.json and the tokenizer's files are written as `from_hf` found them where the metadata hold them.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_TOKENIZER
from apr.convert import to_safetensors
from apr.convert.directory import (
    CONFIG,
    GENERATION,
    HF_CONFIG,
    HF_GENERATION,
    TOKENIZER_BINARIES,
    TOKENIZER_TEXTS,
    replacing_directory,
)
from apr.convert.from_hf import BASE64, WEIGHTS
from apr.convert.stream import Item, Model, from_apr, grouped, same_values, stretches
from apr.errors import FormatError, RefusedError, UnsupportedError, WeightsError
from apr.files import write_atomically, write_json
from apr.gguf.names import hf_name, unpermute
from apr.model.config import ModelConfig, names_family
from apr.model.names import EMBEDDING, HEAD, HEADS, TRAINING_PREFIX, check_layers, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.container.tensor_file import TensorFile
    from apr.convert.stream import FloatDtype, OnTensor

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What transformers says in each file of weights, and asks for.
_EACH = {"format": "pt"}
# Parameters of Llama whose rows GGUF keeps in another order.
_PERMUTED = re.compile(r"\.[qk]_proj\.(weight|bias)$")


def is_described(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata say of which architecture the tensors are."""
    return isinstance(metadata.get(HF_CONFIG), dict) or names_family(metadata)


def write(
    file: TensorFile,
    directory: Path,
    *,
    dtype: FloatDtype | None,
    max_shard_size: int,
    tokenizer: bool,
    force: bool,
    on_tensor: OnTensor | None,
) -> Model:
    """Write the model of an .apr file as a directory that transformers loads.

    Training state is left out, GGUF's names are translated and Llama's rows of q and k with them, a copy of
    a tied embedding is dropped, quantized tensors are written as float32.

    Returns:
        config.json, the tensors that were written, and what a user should know.

    Raises:
        RefusedError: metadata that lack a size, or contradict themselves.
        WeightsError: the tensors are not those of the model that the metadata describe.
        OSError: the directory cannot be written; nothing of it is then there.
    """
    items, config, notes = _as_hf(file)
    items = [item.cast(dtype).reported(n, len(items), on_tensor) for n, item in enumerate(items)]
    texts, about = _tokenizer_files(file) if tokenizer else ({}, ())
    groups = grouped(items, max_shard_size)
    config |= _dtype(config, items)
    with replacing_directory(directory, force=force) as made:
        write_json(made / CONFIG, config)
        if isinstance(file.metadata.get(HF_GENERATION), dict):
            write_json(made / GENERATION, file.metadata[HF_GENERATION])
        for name, text in texts.items():
            write_atomically(made / name, text)
        if len(groups) == 1:
            to_safetensors.write(made / WEIGHTS, items, _EACH)
        else:
            to_safetensors.write_several(made, groups, {}, _EACH)
    return Model(config, items, (*notes, *about))


def _as_hf(file: TensorFile) -> tuple[list[Item], dict[str, Any], tuple[str, ...]]:
    """Tensors under transformers' names, config.json, and notes."""
    names = [name for name in file if not name.startswith(TRAINING_PREFIX)]
    head_present = any(name in names and not file.info(name).tied for name in HEADS)
    kept = file.metadata.get(HF_CONFIG)
    try:
        config = ModelConfig.from_metadata(file.metadata, head_present=head_present)
    except RefusedError as error:
        if not isinstance(kept, dict):
            hint = "tensors alone go to a file that ends in .safetensors, or to several: --max-shard-size"
            raise type(error)(f"{file.path}: {error} ({hint})") from None
        # Of a family that is only stored: what transformers wrote is what it gets back.
        return [from_apr(file, name) for name in names], dict(kept), ()
    check_layers(file.path, config, len(names))
    shapes = parameter_shapes(config)
    items: dict[str, Item] = {}
    for name in names:
        if name in HEADS and file.info(name).tied:
            continue
        target = hf_name(name) or name
        if target in items:
            raise WeightsError(f"{file.path}: two tensors are both {target}")
        items[target] = _named(file, name, target, shapes.get(target), config)
    if config.tie_word_embeddings and HEAD in items and EMBEDDING in items:
        if not same_values(items[HEAD], items[EMBEDDING]):
            raise WeightsError(
                f"{file.path}: the metadata say that the head is tied, but {HEAD} differs from {EMBEDDING}"
            )
        del items[HEAD]
    _check(file.path, items, shapes)
    dequantized = sum(1 for name in names if file.info(name).dtype.startswith("q"))
    notes = (f"{dequantized} quantized tensors were written as float32",) if dequantized else ()
    return (
        list(items.values()),
        _config(config, file.metadata, kept if isinstance(kept, dict) else {}),
        notes,
    )


def _named(
    file: TensorFile, name: str, target: str, shape: tuple[int, ...] | None, config: ModelConfig
) -> Item:
    item = from_apr(file, name)
    item = replace(item, spec=replace(item.spec, name=target))
    if shape is not None and item.spec.shape == (1, *shape):  # some writers keep biases as rows
        return replace(item, spec=replace(item.spec, shape=shape))
    if name == target or config.family != "llama" or not _PERMUTED.search(target):
        return item
    if item.spec.shape != shape:  # refused with all that does not fit
        return item
    stored, head = file.slice(name), config.head_dim * prod(shape[1:])

    def parts() -> Iterator[NDArray[Any]]:
        for start, stop in stretches(prod(shape), head):
            rows = stored.flat(start, stop).reshape(-1, *shape[1:])
            yield unpermute(rows, (stop - start) // head)

    return replace(item, parts=parts)


def _check(path: str, items: Mapping[str, Item], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing, left_over = sorted(shapes.keys() - items.keys()), sorted(items.keys() - shapes.keys())
    wrong = [
        f"{name} is {list(items[name].spec.shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in items and items[name].spec.shape != shape
    ]
    problems = [
        *([f"{len(missing)} tensors are missing: {', '.join(missing[:8])}"] if missing else []),
        *([f"{len(left_over)} have no place: {', '.join(left_over[:8])}"] if left_over else []),
        *wrong[:3],
    ]
    if problems:
        raise WeightsError(f"{path}: not the model that its metadata describe: {'; '.join(problems)}")


def _config(config: ModelConfig, metadata: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of transformers: as it was kept, unless the metadata say something else by now."""
    if _says(kept, config):
        return dict(kept)
    sizes = config.to_metadata()
    made: dict[str, Any] = {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",  # `_dtype` says which
        **{key: metadata.get(key, metadata.get(f"tokenizer.{key}")) for key in _TOKEN_IDS},
        **{key: value for key, value in kept.items() if key != "rope_parameters"},
        "architectures": [sizes["hf_architecture"]],
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
        "rope_theta": config.rope_theta,
        "rope_scaling": sizes.get("rope_scaling"),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return made | ({"attention_bias": config.attention_bias} if config.family == "llama" else {})


def _says(kept: Mapping[str, Any], config: ModelConfig) -> bool:
    try:
        return ModelConfig.from_metadata(kept, head_present=not config.tie_word_embeddings) == config
    except RefusedError:
        return False


def _dtype(config: Mapping[str, Any], items: Sequence[Item]) -> dict[str, str]:
    """The dtype of most values, under the key that the configuration has for it; none where it has none."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.spec.dtype] = sizes.get(item.spec.dtype, 0) + item.values
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
    most = names.get(max(sizes, key=lambda dtype: sizes[dtype], default="f32"), "float32")
    return {key: most for key in ("dtype", "torch_dtype") if config.get(key) is not None}


def _tokenizer_files(file: TensorFile) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The tokenizer's files, as they were or rebuilt, and a note where there is something to say."""
    kept = file.metadata.get(HF_TOKENIZER)
    if isinstance(kept, dict):
        return {name: _content(file.path, name, value) for name, value in kept.items()}, ()
    if "tokenizer.vocabulary" not in file.metadata:
        return {}, ("the file holds no tokenizer: the directory has none either",)
    from apr.data.tokenizers import load_tokenizer

    try:
        loaded = load_tokenizer(file.path)
    except (FormatError, UnsupportedError) as error:
        return {}, (f"no tokenizer was written: {error}",)
    loaded.tokenizer.encode_special_tokens = False
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ids = {id_: token for token, id_ in loaded.tokenizer.get_vocab().items()}
    for key in ("bos", "eos"):
        id_ = file.metadata.get(f"tokenizer.{key}_token_id")
        if id_ in ids:
            config[f"{key}_token"] = ids[id_]
    if isinstance(file.metadata.get("chat_template"), str):
        config["chat_template"] = file.metadata["chat_template"]
    files = {
        "tokenizer.json": loaded.tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }
    return files, (() if loaded.note is None else (loaded.note,))


def _content(path: str, name: str, value: object) -> bytes:
    """The bytes of a tokenizer's file that the metadata hold."""
    try:
        if name in TOKENIZER_TEXTS and isinstance(value, str):
            return value.encode()
        if name in TOKENIZER_BINARIES and isinstance(value, dict) and isinstance(value.get(BASE64), str):
            return base64.b64decode(value[BASE64], validate=True)
    except ValueError as error:
        raise RefusedError(f"{path}: metadata key {HF_TOKENIZER}: {name}: {error}") from None
    raise RefusedError(f"{path}: metadata key {HF_TOKENIZER} holds {name!r}, no file of a tokenizer")

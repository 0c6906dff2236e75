"""Read a transformers model directory: config.json, safetensors files, tokenizer files.

The metadata get config.json and the tokenizer files whole, so that `to_hf` can write them back unchanged, and
beside them the model's sizes under the keys of .apr files.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_CONFIG, HF_GENERATION, HF_TOKENIZER
from apr.convert import from_safetensors
from apr.convert.hf_files import (
    BASE64,
    CONFIG,
    GENERATION,
    WEIGHTS,
    content_of,
    side_files,
    to_json,
)
from apr.convert.plan import SAFETENSORS_INDEX
from apr.convert.stream import ModelStream, TensorStream, read_json_object, same_values, split_fused
from apr.errors import FormatError, RefusedError, UnsupportedError, UsageError, WeightsError
from apr.files import as_utf8
from apr.model.config import ModelConfig
from apr.model.metadata import ALIASES, spellings
from apr.model.names import EMBEDDING, HEAD, fused_parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# .apr metadata hold 16 MiB. A margin of 1 MiB stays for config.json and the sizes.
_MAX_TOKENIZER_BYTES = 15 << 20
# Buffers that old versions of transformers saved among the weights. They follow from the configuration.
_BUFFERS = (".rotary_emb.inv_freq", ".masked_bias")


def read(directory: Path, *, tokenizer: bool) -> ModelStream:
    """Read a model directory.

    Args:
        directory: holds config.json, and model.safetensors or several files with their index.
        tokenizer: whether to include the tokenizer files.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        FormatError: a file is invalid.
        UnsupportedError: the weights have another format, or a dtype that .apr does not store.
        WeightsError: config.json ties the head to the embedding, but the two differ.
        UsageError: the tokenizer files are too large for metadata.
    """
    config = read_json_object(directory / CONFIG)
    tensors = [tensor for tensor in _read_weights(directory) if not tensor.spec.name.endswith(_BUFFERS)]
    head_present = any(tensor.spec.name == HEAD for tensor in tensors)
    model, problem = read_config(config, head_present=head_present)
    metadata = _model_metadata(directory, config, model)
    notes = [] if problem is None else [f"the model is stored, but apr cannot train it: {problem}"]
    if "auto_map" in config and (code := sorted(path.name for path in directory.glob("*.py"))):
        notes.append(
            f"a model file holds no code, so that {', '.join(code)} is left out; transformers needs it only "
            "with trust_remote_code"
        )
    if model is not None:
        tensors = split_fused(tensors, fused_parts(model))
        if model.tie_word_embeddings:
            tensors = _without_tied_head(directory, tensors)
    metadata |= {
        "original_format": "safetensors",
        "param_count": sum(tensor.numel for tensor in tensors),
        HF_CONFIG: to_json(config),
    }
    if (directory / GENERATION).is_file():
        metadata[HF_GENERATION] = to_json(read_json_object(directory / GENERATION))
    if tokenizer and (files := _read_tokenizer(directory)):
        metadata[HF_TOKENIZER] = files
    return ModelStream(metadata, tensors, tuple(notes))


def _read_weights(directory: Path) -> list[TensorStream]:
    # In the order in which transformers looks for them.
    if (directory / WEIGHTS).is_file():
        return from_safetensors.read_file(directory / WEIGHTS)[1]
    if (directory / SAFETENSORS_INDEX).is_file():
        return from_safetensors.read_several(directory / SAFETENSORS_INDEX)[1]
    pickles = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt*"))
    if pickles:
        raise UnsupportedError(
            f"{pickles[0]}: PyTorch pickles are not supported, because loading one can run any code; "
            "save the model with save_pretrained(safe_serialization=True)",
            path=pickles[0],
        )
    raise FileNotFoundError(2, f"the directory has neither {WEIGHTS} nor {SAFETENSORS_INDEX}", str(directory))


def read_config(config: dict[str, Any], *, head_present: bool) -> tuple[ModelConfig | None, str | None]:
    """Return the decoder's configuration, or why apr cannot train the model."""
    try:
        return ModelConfig.from_hf(config, head_present=head_present), None
    except RefusedError as error:
        return None, str(error)


def _class_name(config: dict[str, Any]) -> str | None:
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return name if isinstance(name, str) else None


def _model_metadata(directory: Path, config: dict[str, Any], model: ModelConfig | None) -> dict[str, Any]:
    model_type = config.get("model_type")
    metadata = {
        "model_type": model_type,
        "name": as_utf8(directory.resolve().name),
        # The ecosystem's writer stores these three even if they are null.
        "license": None,
        "data_source": None,
        "data_license": None,
    }
    if model is not None:
        return metadata | model.to_metadata()
    # A model that apr cannot train is stored all the same: it can be inspected and converted back.
    return metadata | {
        "architecture": model_type,
        "hf_architecture": _class_name(config),
        "hf_model_type": model_type,
        **{key: to_json(value) for key in ALIASES for value in list(spellings(config, key).values())[:1]},
    }


def _without_tied_head(directory: Path, tensors: list[TensorStream]) -> list[TensorStream]:
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    head, embedding = by_name.get(HEAD), by_name.get(EMBEDDING)
    if head is None:
        return tensors
    if embedding is None:
        # Stored under the name of the head alone, which transformers reads too.
        renamed = replace(head, spec=replace(head.spec, name=EMBEDDING))
        return [renamed if tensor is head else tensor for tensor in tensors]
    if not same_values(head, embedding):
        raise WeightsError(
            f"{directory}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; "
            "correct config.json or the weights",
            path=directory,
        )
    return [tensor for tensor in tensors if tensor is not head]


def _read_tokenizer(directory: Path) -> dict[str, Any]:
    """Return the tokenizer files by name: texts as they are, binary files as {"base64": …}."""
    files: dict[str, Any] = {}
    for name, path in side_files(directory):
        if content_of(name) == "binary":
            files[name] = {BASE64: base64.b64encode(path.read_bytes()).decode()}
            continue
        try:
            # Not read_text, which would turn CRLF into LF: the files must come back byte for byte.
            files[name] = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}: invalid UTF-8 at byte {error.start}", path=path, offset=error.start
            ) from None
    if _json_size(files) > _MAX_TOKENIZER_BYTES:
        # Without its indentation, a tokenizer.json may fit.
        for name in files:
            if name.endswith(".json"):
                value = read_json_object(directory / name)
                files[name] = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if _json_size(files) > _MAX_TOKENIZER_BYTES:
        raise UsageError(
            f"{directory}: the tokenizer files take {_json_size(files):,} bytes, but the metadata can hold "
            "only 16 MiB; pass --no-tokenizer to leave them out",
            path=directory,
        )
    return files


def _json_size(files: Mapping[str, Any]) -> int:
    return len(json.dumps(files, ensure_ascii=False).encode(errors="surrogatepass"))

"""Read a transformers model directory: config.json, safetensors files, tokenizer files.

config.json and the tokenizer's files go into the metadata whole, beside the sizes under the names that .apr
files have; `to_hf` writes them back as they were.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_TOKENIZER
from apr.convert import from_safetensors
from apr.convert.directory import (
    CONFIG,
    GENERATION,
    HF_CONFIG,
    HF_GENERATION,
    TOKENIZER_BINARIES,
    TOKENIZER_TEXTS,
)
from apr.convert.plan import SAFETENSORS_INDEX
from apr.convert.stream import Item, Model, json_object, same_values
from apr.errors import FormatError, RefusedError, UnsupportedError, UsageError, WeightsError
from apr.model.config import ModelConfig
from apr.model.names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WEIGHTS = "model.safetensors"
BASE64 = "base64"
# The format's limit of 16 MiB on what is written, with room for the sizes.
_MOST_TEXT = 15 << 20
# Buffers that old versions of transformers saved among the weights; they follow from the configuration.
_BUFFERS = (".rotary_emb.inv_freq", ".masked_bias")


def read(directory: Path, *, tokenizer: bool) -> Model:
    """A model directory.

    Args:
        directory: holds config.json and model.safetensors, or several with their index.
        tokenizer: whether the tokenizer's files go along.

    Raises:
        FileNotFoundError: no config.json, or no weights.
        FormatError: a file of it lies.
        UnsupportedError: weights of another format, or of a dtype that .apr lacks.
        WeightsError: a head that is said to be tied and differs from the embedding.
        UsageError: tokenizer files beyond what metadata may hold.
    """
    config = json_object(directory / CONFIG)
    items = [item for item in _weights(directory) if not item.spec.name.endswith(_BUFFERS)]
    metadata, notes = _metadata(directory, config, head_present=any(i.spec.name == HEAD for i in items))
    if metadata.get("tie_word_embeddings"):
        items = _untie(directory, items)
    metadata |= {
        "original_format": "safetensors",
        "param_count": sum(item.values for item in items),
        HF_CONFIG: config,
    }
    if (directory / GENERATION).is_file():
        metadata[HF_GENERATION] = json_object(directory / GENERATION)
    if tokenizer:
        metadata |= _texts(directory)
    return Model(metadata, items, notes)


def _weights(directory: Path) -> list[Item]:
    if (directory / WEIGHTS).is_file():
        return from_safetensors.read(directory / WEIGHTS)[1]
    if (directory / SAFETENSORS_INDEX).is_file():
        return from_safetensors.read_several(directory / SAFETENSORS_INDEX)[1]
    pickled = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt*"))
    if pickled:
        raise UnsupportedError(
            f"{pickled[0]}: a PyTorch pickle is not read, it can run any code: "
            "save the model with save_pretrained(safe_serialization=True)",
            path=pickled[0],
        )
    raise FileNotFoundError(2, f"neither {WEIGHTS} nor {SAFETENSORS_INDEX} in this directory", str(directory))


def _metadata(
    directory: Path, config: dict[str, Any], *, head_present: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    kind = config.get("model_type")
    base = {
        "model_type": kind,
        "name": directory.resolve().name,
        "license": None,
        "data_source": None,
        "data_license": None,
    }
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    try:
        sizes = _sizes(config, name, head_present=head_present)
    except RefusedError as error:
        only = {"architecture": kind, "hf_architecture": name, "hf_model_type": kind}
        return base | only, (f"stored, but apr cannot train it: {error}",)
    return base | sizes, ()


def _sizes(config: dict[str, Any], name: str | None, *, head_present: bool) -> dict[str, Any]:
    """The metadata of a decoder; refused is also what has a decoder's configuration and other tensors."""
    sizes = ModelConfig.from_metadata(config, head_present=head_present).to_metadata()
    if name not in {None, sizes["hf_architecture"]}:
        raise RefusedError(f"it is a {name}, not a {sizes['hf_architecture']}")
    if config.get("quantization_config") is not None:
        raise RefusedError("config.json has a quantization_config")
    return sizes


def _untie(directory: Path, items: list[Item]) -> list[Item]:
    """Without the head, which must be the embedding bit for bit."""
    named = {item.spec.name: item for item in items}
    head, embedding = named.get(HEAD), named.get(EMBEDDING)
    if head is None or embedding is None:
        return items
    if not same_values(head, embedding):
        raise WeightsError(
            f"{directory}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}: "
            "correct one of them"
        )
    return [item for item in items if item is not head]


def _texts(directory: Path) -> dict[str, Any]:
    """The tokenizer's files: text as it is, anything else as {"base64": …}."""
    found: dict[str, Any] = {
        name: {BASE64: base64.b64encode((directory / name).read_bytes()).decode()}
        for name in TOKENIZER_BINARIES
        if (directory / name).is_file()
    }
    for name in TOKENIZER_TEXTS:
        path = directory / name
        if not path.is_file():
            continue
        try:
            found[name] = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}: no UTF-8 at byte {error.start}", path=path, offset=error.start
            ) from None
    if _size(found) > _MOST_TEXT:  # without indentation it may fit
        for name in found:
            if name.endswith(".json"):
                spec = json_object(directory / name)
                found[name] = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    if _size(found) > _MOST_TEXT:
        raise UsageError(
            f"{directory}: its tokenizer files take {_size(found):,} bytes, metadata hold 16 MiB: "
            "--no-tokenizer leaves them out"
        )
    return {HF_TOKENIZER: found} if found else {}


def _size(texts: Mapping[str, Any]) -> int:
    return len(json.dumps(texts, ensure_ascii=False).encode(errors="surrogatepass"))

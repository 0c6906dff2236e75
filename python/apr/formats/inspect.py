"""`apr.inspect`: what a model file of any format is, as a dictionary."""

from __future__ import annotations

import os
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from apr.container.inspect import container_facts
from apr.formats.foreign import ForeignFile
from apr.formats.open import open_model
from apr.model.families import FAMILIES
from apr.model.metadata import spellings
from apr.model.names import EMBEDDINGS, HEADS, TRAINING_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Unpack

    from apr.container.header import TensorInfo
    from apr.container.legacy.keys import Keys

_SIZES = ("num_layers", "num_heads", "num_kv_heads", "hidden_size", "vocab_size")


def inspect(
    path: str | PathLike[str],
    *,
    verify: Literal["structure", "full"] = "full",
    **keys: Unpack[Keys],
) -> dict[str, object]:
    """Describe a file. Every file that opens is described, including one whose checksum is wrong.

    Args:
        path: an .apr, safetensors or GGUF file; or, for a model in several files, its index or directory.
        verify: "full" reads every byte to decide `checksum_valid`; "structure" leaves it None.
        keys: `password`, `recipient_key` and `trusted_key` as in `apr.load`; for an .apr file alone.

    Returns:
        A dictionary that `json.dumps` accepts:

        - `file`: the path; `files`: the paths of a model in several files, else None.
        - `valid`: whether no check failed; `checksum_valid`: whether the footer matches, None if there is no
          footer or it was not checked.
        - `format`: the form of the format, such as "APR v2", "safetensors" or "GGUF"; `version`: such as
          "2.0", None for safetensors, which has none.
        - `kind`: "model", "checkpoint" or "shard".
        - `tensor_count`, `param_count`, `size_bytes`; `dtypes`: the number of tensors of each dtype.
        - `architecture`, `num_layers`, `num_heads`, `num_kv_heads`, `hidden_size`, `vocab_size`: from the
          metadata, for safetensors from the config.json of the directory; None if they do not contain them.
        - `header_checksum`, `footer_checksum`: as stored, in hexadecimal; None if there is none and for
          several files. safetensors and GGUF have none, and neither flags nor reserved bytes.
        - `flags`: each named flag and whether it is set; `unknown_flags`: the set bits without a name;
          `reserved`: the reserved bytes in hexadecimal, None if all are zero.
        - `v1`: None, or for version 1 `model_type`, `compression`, `quality`, `payload_size` (stored bytes),
          `uncompressed_size`, `encrypted`, `locked` (encrypted, and no key was given), `signature` (None,
          "trusted" or "integrity alone") and `public_key` (hexadecimal).
        - `metadata`: all metadata.

    Raises:
        AprError: the file does not open; the error has the path, tensor and byte.
        OSError: the file cannot be opened or read.
    """
    with open_model(path, **keys) as file:
        facts = container_facts(file, os.fspath(path), verify=verify)
        infos = [file.info(name) for name in file]
        metadata = file.config if isinstance(file, ForeignFile) else file.metadata
        is_shard = not file.is_sharded and bool(facts["flags"].get("sharded"))
    if any(info.name.startswith(TRAINING_PREFIX) for info in infos):
        kind = "checkpoint"
    else:
        kind = "shard" if is_shard else "model"
    # The most specific name first. In older files `architecture` is LlamaForCausalLM for every model.
    names = (metadata.get(key) for key in ("hf_model_type", "hf_architecture", "architecture"))
    return {
        **facts,
        "kind": kind,
        "architecture": next((name for name in names if name), None),
        **{key: next(iter(spellings(metadata, key).values()), None) for key in _SIZES},
        "param_count": _parameters(infos, tied=_is_tied(metadata)),
    }


def _parameters(infos: Sequence[TensorInfo], *, tied: bool) -> int:
    """Return the number of the model's parameters: training state does not count, a tied head once."""
    # Importers store a tied head as a copy of the embedding. Counted, it would make Qwen2.5-0.5B a model of
    # 630 M parameters instead of 494 M. safetensors' `save_model` leaves the head alone, which counts.
    embedding_present = any(info.name in EMBEDDINGS for info in infos)
    left_out = HEADS if tied and embedding_present else ()
    return sum(
        prod(info.shape)
        for info in infos
        if not info.tied and info.name not in left_out and not info.name.startswith(TRAINING_PREFIX)
    )


def _is_tied(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata, or the defaults of transformers' class, tie the head to the embedding."""
    stated = next(iter(spellings(metadata, "tie_word_embeddings").values()), None)
    # An .apr file without the key is tied exactly if it has no head; its key for the class is another one.
    family = FAMILIES.get(str(metadata.get("model_type"))) if "num_hidden_layers" in metadata else None
    return bool(family is not None and family.defaults["tie_word_embeddings"] if stated is None else stated)

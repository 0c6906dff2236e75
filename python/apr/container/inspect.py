"""What a file is, as a dict: its kind, sizes, dtypes, flags, checksums and metadata."""

from __future__ import annotations

import os
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from apr.container.file import HEADS, TRAINING_PREFIX, Flags, TensorInfo, load
from apr.container.legacy.v1 import V1File, V1Flags
from apr.container.metadata import spellings
from apr.container.sharded import ShardedFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from typing import Unpack

    from apr.container.legacy.keys import Keys

_FACTS = ("num_layers", "num_heads", "num_kv_heads", "hidden_size", "vocab_size")


def inspect(
    path: str | PathLike[str],
    *,
    verify: Literal["structure", "full"] = "full",
    **keys: Unpack[Keys],
) -> dict[str, object]:
    """Say what a file is. A file that opens is described, even one whose footer is wrong.

    Args:
        path: the file, or the index or directory of a model in several.
        verify: "full" reads every byte and decides `checksum_valid`; "structure" leaves it None.
        keys: as `apr.load` takes them.

    Returns:
        As JSON would hold it: file, files (their paths for several, else None), valid, format (the form, in
        words), version, kind ("model", "checkpoint" or "shard"), tensor_count, size_bytes,
        checksum_valid (None where there is no footer, or it was not checked), header_checksum (None where the
        form has none), footer_checksum (both None for several files), architecture, num_layers, num_heads,
        num_kv_heads, hidden_size, vocab_size (each None where the metadata do not say), param_count, dtypes
        (dtype: tensors), flags (name: set), unknown_flags (bits), reserved (hex, None if zero), v1 (None for
        the other forms: model_type, compression, quality, payload_size as stored, uncompressed_size,
        encrypted, locked if no key was given, signature None, "trusted" or "integrity alone", public_key in
        hex), metadata.

    Raises:
        AprError: the file does not open; with path, tensor and byte.
        OSError: as `open` would.
    """
    with load(path, **keys) as file:
        header, metadata, footer, nbytes = file.header, file.metadata, file.footer, file.nbytes
        checks = file.verify().checks if verify == "full" else ()
        infos = [file.info(name) for name in file]
        form = file.form
        files = [part.path for part in file.files] if isinstance(file, ShardedFile) else None
        v1 = _v1(file) if isinstance(file, V1File) else None
    footers = [check.passed for check in checks if check.name == "footer"]
    flags = type(header.flags)
    named = {flag.value for flag in flags}
    return {
        "file": os.fspath(path),
        "files": files,
        "valid": all(check.passed is not False for check in checks),
        "format": form,
        "version": ".".join(map(str, header.version)),
        "kind": _kind(infos, is_shard=v1 is None and files is None and Flags.SHARDED in header.flags),
        "tensor_count": len(infos),
        "size_bytes": nbytes,
        "checksum_valid": False if False in footers else None if None in footers or not footers else True,
        "header_checksum": f"{header.checksum:#010x}" if form.startswith("APR v2") and not files else None,
        "footer_checksum": None if footer is None else f"{footer:#010x}",
        "architecture": _architecture(metadata),
        **{key: next(iter(spellings(metadata, key).values()), None) for key in _FACTS},
        "param_count": sum(prod(info.shape) for info in infos if _is_parameter(info, metadata)),
        "dtypes": dict(Counter(info.dtype for info in infos).most_common()),
        "flags": {str(flag.name).lower(): flag in header.flags for flag in flags},
        "unknown_flags": [bit for bit in range(16) if header.flags & (1 << bit) and 1 << bit not in named],
        "reserved": header.reserved.hex() if header.reserved and any(header.reserved) else None,
        "v1": v1,
        "metadata": dict(metadata),
    }


def _v1(file: V1File) -> dict[str, object]:
    header, signature = file.header, file.signature
    return {
        "model_type": header.model_type_name,
        "compression": header.compression,
        "quality": header.quality,
        "payload_size": header.payload_size,
        "uncompressed_size": header.uncompressed_size,
        "encrypted": V1Flags.ENCRYPTED in header.flags,
        "locked": file.locked,
        "signature": None if signature is None else "trusted" if signature.trusted else "integrity alone",
        "public_key": None if signature is None else signature.public_key.hex(),
    }


def _architecture(metadata: Mapping[str, Any]) -> object:
    """The most specific of what writers say: `architecture` alone is often a default."""
    for key in ("hf_model_type", "hf_architecture", "architecture"):
        if metadata.get(key):
            return metadata[key]
    return None


def _kind(infos: list[TensorInfo], *, is_shard: bool) -> str:
    if any(info.name.startswith(TRAINING_PREFIX) for info in infos):
        return "checkpoint"
    return "shard" if is_shard else "model"


def _is_parameter(info: TensorInfo, metadata: Mapping[str, Any]) -> bool:
    """Whether its values are parameters: optimizer state is not, nor a head that is tied."""
    says_tied = metadata.get("tie_word_embeddings") or metadata.get("tied_embeddings")
    is_tied = info.tied or (says_tied and info.name in HEADS)
    return not is_tied and not info.name.startswith(TRAINING_PREFIX)

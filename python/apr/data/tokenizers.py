"""Tokenizers from a directory, a tokenizer.json or a model file, with the id of the end of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_TOKENIZER
from apr.data.tokenizer_files import (
    FILES,
    OTHER_MODEL,
    OTHER_MODELS,
    TOKENIZER,
    from_files,
    from_json,
    is_complete,
    read_files,
)
from apr.data.tokenizer_keys import from_metadata
from apr.errors import FormatError, named_extras
from apr.file_format import format_of_start
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from apr.data.loaded_tokenizer import LoadedTokenizer


@named_extras()
def load_tokenizer(path: str | PathLike[str], *, eos_token: str | None = None) -> LoadedTokenizer:
    """Read a tokenizer.

    Args:
        path: a directory with tokenizer.json, or with vocab.json and merges.txt (GPT-2's byte-level form or
            the ecosystem's hex-byte form); a tokenizer.json; an .apr or .gguf file that contains a tokenizer.
        eos_token: the end-of-text token, instead of the one in the tokenizer's configuration.

    Raises:
        FileNotFoundError: no such file, or a directory without a tokenizer.
        FormatError: invalid JSON, or contents that contradict each other.
        UnsupportedError: a kind of tokenizer that `apr` does not read.
        UsageError: `eos_token` is not in the vocabulary.
    """
    path = Path(path)
    if path.is_dir():
        return from_files(path, read_files(path), eos_token)
    with path.open("rb") as file:
        start = file.read(9)
    format_ = format_of_start(start)
    if format_ == "gguf":
        from apr.gguf.metadata import read_tokenizer_metadata

        return from_metadata(path, read_tokenizer_metadata(path), eos_token)
    if format_ == "apr":
        import apr

        with apr.load(path) as model:
            metadata = model.metadata
        return tokenizer_from_metadata(path, metadata, eos_token=eos_token)
    files = {**read_files(path.parent), TOKENIZER: path.read_bytes()}
    try:
        return from_json(path, files, eos_token)
    except FormatError:
        # By its name, which is that of a tokenizer even where the contents are damaged.
        what = "" if path.name == TOKENIZER else _other_file(path)
        if not what:
            raise
        raise FormatError(f"{path}: not a tokenizer, but {what}", path=path) from None


def _other_file(path: Path) -> str:
    """Return what a file that is not a tokenizer.json is; an empty text for what is not recognized."""
    if path.name in FILES:
        return f"one file of a tokenizer; pass its directory: {path.parent}"
    if path.name.endswith(OTHER_MODELS):
        return f"a {OTHER_MODEL}"
    return recognized(path)


def tokenizer_from_metadata(
    path: str | PathLike[str], metadata: Mapping[str, Any], *, eos_token: str | None = None
) -> LoadedTokenizer:
    """Rebuild the tokenizer that the metadata of a model file contain.

    Args:
        path: the file, as errors name it.
        metadata: its metadata.
        eos_token: as in `load_tokenizer`.

    Raises:
        FormatError, UnsupportedError, UsageError: as `load_tokenizer`.
    """
    path = Path(path)
    kept = metadata.get(HF_TOKENIZER)
    if isinstance(kept, dict):
        files = {name: kept[name].encode() for name in FILES if isinstance(kept.get(name), str)}
        if is_complete(files):
            return from_files(path, files, eos_token)
    return from_metadata(path, metadata, eos_token)

"""The files of a transformers model directory, and the metadata keys under which `.apr` files keep them."""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = "model.safetensors"
# Where tokenizers have their chat templates beside the default one, a file for each.
TEMPLATES = "additional_chat_templates"
# What transformers reads from a directory beside configurations and weights: the files of its tokenizers, of
# the processors around them, and chat templates. A tokenizer.json may have a version of transformers in its
# name.
_TEXTS = re.compile(
    r"tokenizer(\.[\d.]+)?\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|vocab\.json|merges\.txt|vocab\.txt|dict\.txt|bpe\.codes|normalizer\.json|entity_vocab\.json|emoji\.json"
    r"|vocab-(src|tgt)\.json|target_vocab\.json|byte_maps\.json|word_(shape|pronunciation)\.json"
    r"|chat_template\.(jinja|json)"
    r"|((video_)?preprocessor|processor|audio_tokenizer)_config\.json"
    rf"|{TEMPLATES}/[^/\\\0]{{1,200}}\.jinja"
)
# SentencePiece's and tiktoken's models.
_BINARIES = re.compile(
    r"(tokenizer|tiktoken|sentencepiece|sentencepiece\.bpe|spiece|spm|spm_char)\.model"
    r"|(source|target)\.spm|[\w.-]{1,200}\.tiktoken|prophetnet\.tokenizer"
)
# The key of a binary file's content in its object {"base64": …}.
BASE64 = "base64"
# The key of a number that JSON does not have in its object. transformers wrote such numbers as Python does;
# newer versions write an object of their own, which is kept as it is.
_NOT_FINITE = "apr.float"


def content_of(name: str) -> Literal["text", "binary"] | None:
    """Return what a file of a tokenizer or processor holds, or None for another file.

    Args:
        name: the name in the directory, with a `/` for one in a directory of its own.
    """
    if _TEXTS.fullmatch(name):
        return "text"
    return "binary" if _BINARIES.fullmatch(name) else None


def side_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of each file of a tokenizer or processor, in order of their names."""
    paths = [*directory.iterdir(), *(directory / TEMPLATES).glob("*")]
    names = {path.relative_to(directory).as_posix(): path for path in paths}
    yield from ((name, names[name]) for name in sorted(names) if content_of(name) and names[name].is_file())


def to_json(value: Any) -> Any:  # noqa: ANN401 (any value of JSON)
    """Return a configuration without infinities and NaN, which metadata cannot hold; see `from_json`."""
    if isinstance(value, float) and not isfinite(value):
        return {_NOT_FINITE: str(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:  # noqa: ANN401
    """Return the configuration that `to_json` made storable."""
    if isinstance(value, dict):
        if value.keys() == {_NOT_FINITE} and value[_NOT_FINITE] in {"inf", "-inf", "nan"}:
            return float(value[_NOT_FINITE])
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value

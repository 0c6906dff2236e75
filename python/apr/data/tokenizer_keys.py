"""Tokenizers from GGUF's keys in the metadata of a model file."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from apr.data.byte_level import Vocabulary, checked_merge
from apr.data.loaded_tokenizer import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, LoadedTokenizer, finish
from apr.data.pre_tokenizers import pre_type_named
from apr.data.sentencepiece import ScoredVocabulary
from apr.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NO_PRE_TYPE = (
    "the file does not name its pre-tokenizer (tokenizer.pre_type), so GPT-2's is used; to be sure, pass the "
    "directory of the model's tokenizer.json"
)
# The types of tokens that pairs of others are merged to.
_MERGED = frozenset({NORMAL, USER_DEFINED})


def from_metadata(path: Path, metadata: Mapping[str, Any], eos_token: str | None) -> LoadedTokenizer:
    """Rebuild a tokenizer from GGUF's keys.

    Raises:
        FormatError, UnsupportedError, UsageError: as `load_tokenizer`.
    """
    tokens, merges = metadata.get("tokenizer.vocabulary"), metadata.get("tokenizer.merges")
    if not isinstance(tokens, list):
        raise UnsupportedError(
            f"{path}: does not contain a tokenizer (tokenizer.vocabulary); pass a tokenizer directory or a "
            "tokenizer.json",
            path=path,
        )
    if not all(isinstance(token, str) for token in tokens):
        raise FormatError(f"{path}: tokenizer.vocabulary contains a value that is not a string", path=path)
    kind = str(metadata.get("tokenizer.model_type") or metadata.get("tokenizer.model") or "BPE").lower()
    if kind == "llama":
        return _from_scores(path, tokens, metadata, eos_token)
    if kind not in {"bpe", "gpt2"}:
        raise UnsupportedError(
            f"{path}: tokenizer model {kind!r} is not supported, only byte-level BPE (gpt2) and "
            "SentencePiece's BPE (llama) are",
            path=path,
        )
    if not isinstance(merges, list):
        raise UnsupportedError(
            f"{path}: does not contain a byte-level tokenizer (tokenizer.merges is missing); pass a "
            "tokenizer directory or a tokenizer.json",
            path=path,
        )
    named_pre_type = str(metadata.get("tokenizer.pre_type") or "gpt-2")
    pre_type = pre_type_named(named_pre_type)
    if pre_type is None:
        raise UnsupportedError(
            f"{path}: pre-tokenizer {named_pre_type!r} is not supported; pass a tokenizer directory or a "
            "tokenizer.json",
            path=path,
        )
    listed = _listed_tokens(path, tokens, metadata)
    vocabulary = Vocabulary(
        ids=listed.ids,
        merges=[_merge(f"{path}: tokenizer.merges[{n}]", merge) for n, merge in enumerate(merges)],
        pre_type=pre_type,
        special=listed.special,
        unknown=None,
        added=listed.added,
    )
    merged = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    return finish(
        path,
        *vocabulary.readers(path),
        sha256=_list_sha256(listed.ids, merged),
        configured=listed.named["eos"],
        bos=listed.named["bos"],
        requested=eos_token,
        note=None if metadata.get("tokenizer.pre_type") else _NO_PRE_TYPE,
        split_known=bool(metadata.get("tokenizer.pre_type")),
    )


def _from_scores(
    path: Path, tokens: list[str], metadata: Mapping[str, Any], eos_token: str | None
) -> LoadedTokenizer:
    scores = metadata.get("tokenizer.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise FormatError(
            f"{path}: tokenizer.scores does not have a number for each of the {len(tokens)} tokens", path=path
        )
    listed = _listed_tokens(path, tokens, metadata)
    merged = {token for token, type_ in zip(tokens, listed.types, strict=False) if type_ in _MERGED}
    vocabulary = ScoredVocabulary(
        ids=listed.ids,
        scores={token: float(scores[id_]) for token, id_ in listed.ids.items() if token in merged},
        special=listed.special,
        unknown=listed.named["unknown"],
        added=listed.added,
        space_first=metadata.get("tokenizer.add_space_prefix") is not False,
    )
    return finish(
        path,
        vocabulary.build,
        None,
        sha256=_list_sha256(listed.ids, json.dumps(scores)),
        configured=listed.named["eos"],
        bos=listed.named["bos"],
        requested=eos_token,
        unknown=vocabulary.unknown,
    )


class _ListedTokens(NamedTuple):
    """The tokens that GGUF's lists name."""

    ids: dict[str, int]
    types: list[Any]
    special: tuple[str, ...]
    added: tuple[str, ...]
    named: dict[str, str | None]
    """The end and start of text and the unknown token."""


def _listed_tokens(path: Path, tokens: list[str], metadata: Mapping[str, Any]) -> _ListedTokens:
    named = {
        name: _token_at(path, tokens, name, metadata.get(f"tokenizer.{name}_token_id"))
        for name in ("eos", "bos", "unknown")
    }
    types = metadata.get("tokenizer.token_type") or [NORMAL] * len(tokens)
    if not isinstance(types, list):
        raise FormatError(f"{path}: tokenizer.token_type is not a list", path=path)
    special = {token for token, type_ in zip(tokens, types, strict=False) if type_ in (CONTROL, UNKNOWN)}
    # The ends are special even if token_type calls them normal tokens.
    special |= {token for token in (named["eos"], named["bos"]) if token is not None}
    ids: dict[str, int] = {}  # a repeated token keeps its first id
    for id_, token in enumerate(tokens):
        ids.setdefault(token, id_)
    added = tuple(token for token, type_ in zip(tokens, types, strict=False) if type_ == USER_DEFINED)
    return _ListedTokens(ids, types, tuple(sorted(special, key=ids.__getitem__)), added, named)


def _list_sha256(ids: Mapping[str, int], rest: str) -> str:
    as_pair = json.dumps(ids, ensure_ascii=False) + rest
    return hashlib.sha256(as_pair.encode(errors="surrogatepass")).hexdigest()


def _token_at(path: Path, tokens: Sequence[str], name: str, id_: object) -> str | None:
    if id_ is None:
        return None
    if type(id_) is not int or not 0 <= id_ < len(tokens):
        raise FormatError(
            f"{path}: tokenizer.{name}_token_id is {id_!r}, but the vocabulary has {len(tokens)} tokens",
            path=path,
        )
    return tokens[id_]


def _merge(where: str, merge: object) -> tuple[str, str]:
    """Return a merge of metadata, which is a string with one space or a list of two tokens."""
    if isinstance(merge, str):
        return checked_merge(where, tuple(merge.split(" ")))
    return checked_merge(where, tuple(merge) if isinstance(merge, list) else (merge,))

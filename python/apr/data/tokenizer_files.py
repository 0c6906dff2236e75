"""Tokenizers from the files of a directory: tokenizer.json, or vocab.json and merges.txt."""

from __future__ import annotations

import errno
import hashlib
import json
from typing import TYPE_CHECKING, Any

from apr._core import ByteLevel
from apr.data.byte_level import Vocabulary, checked_merge
from apr.data.loaded_tokenizer import END_OF_TEXT, LoadedTokenizer, finish
from apr.errors import FormatError
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

# The files that are read, as transformers reads them.
TOKENIZER, _CONFIG, _SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_ADDED, _VOCAB, _MERGES = "added_tokens.json", "vocab.json", "merges.txt"
FILES = (TOKENIZER, _CONFIG, _SPECIAL_MAP, _ADDED, _VOCAB, _MERGES)
# Tokenizers that transformers turns into a tokenizer.json.
OTHER_MODELS = (".model", ".tiktoken")
OTHER_MODEL = (
    "SentencePiece or tiktoken model; load it with transformers' AutoTokenizer and save it again, which "
    "writes tokenizer.json"
)
# The keys of a configuration that name a special token.
_SPECIAL_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")
_UNKNOWN = "<unk>"


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the contents of a tokenizer's files in a directory, by name."""
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}


def is_complete(files: Mapping[str, bytes]) -> bool:
    """Whether files are enough for a tokenizer."""
    return TOKENIZER in files or {_VOCAB, _MERGES} <= files.keys()


def from_files(path: Path, files: Mapping[str, bytes], eos_token: str | None) -> LoadedTokenizer:
    """Build the tokenizer from the files of a directory, or from those that a model file keeps.

    Raises:
        FileNotFoundError, FormatError, UsageError: as `load_tokenizer`.
    """
    # First, because it is complete: the pair of files does not say how a text is split before it is merged.
    if TOKENIZER in files:
        return from_json(path / TOKENIZER if path.is_dir() else path, files, eos_token)
    if _VOCAB in files and _MERGES in files:
        return _from_pair(path, files, eos_token)
    reason = "contains neither tokenizer.json nor vocab.json and merges.txt"
    others = [name.name for name in path.iterdir() if name.name.endswith(OTHER_MODELS)]
    what = f"{others[0]} is a {OTHER_MODEL}" if others else recognized(path)
    if what:
        reason += f"; {what}" if others else f"; it is {what}"
    raise FileNotFoundError(errno.ENOENT, reason, str(path))


def from_json(path: Path, files: Mapping[str, bytes], eos_token: str | None) -> LoadedTokenizer:
    """Build the tokenizer of a tokenizer.json and the files beside it.

    Raises:
        FormatError, UsageError: as `load_tokenizer`.
    """
    content = files[TOKENIZER]
    fast = ByteLevel.read(content)
    if fast is None:
        spec = _json_object(path, content)
        if not isinstance(spec.get("model"), dict):
            raise FormatError(f"{path}: not a tokenizer.json: the key `model` is missing", path=path)
        # Unigram models have an id, the others a token.
        unknown = spec["model"].get("unk_token", spec["model"].get("unk_id"))
    else:
        unknown = fast.unknown
    config, added = _configuration(path.parent, files)
    if fast is not None:
        known = {id_: content for id_, content, _ in fast.added_tokens}
        if any(known.get(id_) != flags["content"] for id_, flags in added.items()):
            # Only the library adds tokens to a tokenizer.
            fast = None

    def read() -> Tokenizer:
        return _with_tokens(path, content, added)

    return finish(
        path,
        read,
        fast,
        sha256=hashlib.sha256(content).hexdigest(),
        unknown=unknown,
        configured=_token_text(config.get("eos_token")),
        bos=_token_text(config.get("bos_token")),
        requested=eos_token,
    )


def _with_tokens(path: Path, content: bytes, added: Mapping[int, Mapping[str, Any]]) -> Tokenizer:
    """Return the library's tokenizer of a tokenizer.json, with the tokens that files beside it add."""
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
        raise FormatError(f"{path}: the tokenizers package cannot read it: {error}", path=path) from None
    known = tokenizer.get_added_tokens_decoder()
    new = {
        id_: flags
        for id_, flags in added.items()
        if getattr(known.get(id_), "content", None) != flags["content"]
    }
    if new:
        tokenizer.add_tokens([AddedToken(**flags) for _, flags in sorted(new.items())])
    for id_, flags in new.items():
        if (given := tokenizer.token_to_id(flags["content"])) != id_:
            raise FormatError(
                f"{path}: the added token {flags['content']!r} has id {id_} in the files beside it, but "
                f"{given} in the tokenizer",
                path=path,
            )
    return tokenizer


def _from_pair(path: Path, files: Mapping[str, bytes], eos_token: str | None) -> LoadedTokenizer:
    # The files of a model file have no paths of their own.
    vocab, merges = (path / name if path.is_dir() else path for name in (_VOCAB, _MERGES))
    config, added = _configuration(path, files)
    ids = _ids(vocab, _json_object(vocab, files[_VOCAB]))
    added = {id_: flags for id_, flags in added.items() if ids.get(flags["content"], id_) == id_}
    special = [flags["content"] for flags in added.values() if flags["special"]]
    vocabulary = Vocabulary(
        ids=ids | {flags["content"]: id_ for id_, flags in added.items()},
        merges=_merges(merges, files[_MERGES]),
        pre_type="qwen2" if str(config.get("tokenizer_class", "")).startswith("Qwen2") else "gpt-2",
        special=tuple(special) or tuple(token for token in (END_OF_TEXT, _UNKNOWN) if token in ids),
        unknown=_UNKNOWN if _UNKNOWN in ids else None,
        added=tuple(flags["content"] for flags in added.values() if not flags["special"]),
    )
    is_hex = vocabulary.is_hex()
    return finish(
        path,
        *(vocabulary.from_hex() if is_hex else vocabulary).readers(path),
        # The ecosystem's definition of `tokenizer_sha256` for a pair: vocab.json, then merges.txt.
        sha256=hashlib.sha256(files[_VOCAB] + files[_MERGES]).hexdigest(),
        configured=_token_text(config.get("eos_token")),
        bos=_token_text(config.get("bos_token")),
        requested=eos_token,
        unknown=vocabulary.unknown,
        note="vocab.json has the hex-byte form" if is_hex else None,
    )


def _configuration(
    directory: Path, files: Mapping[str, bytes]
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return a tokenizer's configuration, and by id the tokens that it adds to the vocabulary.

    As in transformers: a tokenizer_config.json that lists its added tokens is complete. Otherwise
    special_tokens_map.json goes before it, and added_tokens.json lists the added tokens.
    """
    config = _json_object(directory / _CONFIG, files.get(_CONFIG, b"{}"))
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        return config, {
            int(id_): _added_token(token, special=bool(token.get("special")))
            for id_, token in listed.items()
            if str(id_).isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        }
    config |= _json_object(directory / _SPECIAL_MAP, files.get(_SPECIAL_MAP, b"{}"))
    special = {_token_text(config.get(key)) for key in _SPECIAL_KEYS}
    for key in _SPECIAL_LISTS:
        more = config.get(key)
        special |= {_token_text(token) for token in more} if isinstance(more, list) else set()
    path = directory / _ADDED
    added = _ids(path, _json_object(path, files.get(_ADDED, b"{}")))
    return config, {
        id_: _added_token({"content": token}, special=token in special) for token, id_ in added.items()
    }


def _added_token(token: Mapping[str, Any], *, special: bool) -> dict[str, Any]:
    """Return the arguments of the package's AddedToken."""
    flags = {name: bool(token.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(token.get("normalized", not special))
    return {"content": token["content"], "special": special, "normalized": normalized, **flags}


def _json_object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})", path=path) from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a JSON object", path=path)
    return value


def _token_text(value: object) -> str | None:
    """Return a token of a configuration, which is a string or an object with the key `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(path: Path, vocabulary: Mapping[str, Any]) -> dict[str, int]:
    for token, id_ in vocabulary.items():
        if type(id_) is not int or not 0 <= id_ < 2**32:
            raise FormatError(
                f"{path}: the id of {token!r} is {id_!r}, not an unsigned 32-bit integer", path=path
            )
    if len(set(vocabulary.values())) != len(vocabulary):
        raise FormatError(f"{path}: two tokens have the same id", path=path)
    return dict(vocabulary)


def _merges(path: Path, content: bytes) -> list[tuple[str, str]]:
    try:
        # Not splitlines, which also cuts at U+2028 and other characters that a token may contain.
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: invalid UTF-8 at byte {error.start}", path=path, offset=error.start
        ) from None
    return [
        checked_merge(f"{path}:{number}", tuple(line.rstrip("\r").split(" ")))
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#version")
    ]

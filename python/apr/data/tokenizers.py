"""Tokenizers from a directory, a tokenizer.json or a model file, with the id of the end of text."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apr.container.metadata import HF_TOKENIZER
from apr.data.byte_level import Vocabulary
from apr.data.identity import tokenizer_identity
from apr.data.pre_tokenizers import pre_type_named, pre_type_of
from apr.data.sentencepiece import ScoredVocabulary
from apr.errors import FormatError, UnsupportedError, UsageError, named_extras
from apr.file_format import format_of_start
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
# Configurations of chat models name one of these as the end of text, but they end a turn of a conversation.
CHAT_ENDS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>"}
)
_NO_PRE_TYPE = (
    "the file does not name its pre-tokenizer (tokenizer.pre_type), so GPT-2's is used; to be sure, pass the "
    "directory of the model's tokenizer.json"
)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # GGUF's token types
# The files of a tokenizer's directory that are read, as transformers reads them.
_TOKENIZER, _CONFIG, _SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_ADDED, _VOCAB, _MERGES = "added_tokens.json", "vocab.json", "merges.txt"
_FILES = (_TOKENIZER, _CONFIG, _SPECIAL_MAP, _ADDED, _VOCAB, _MERGES)
# Tokenizers that transformers turns into a tokenizer.json.
_OTHER_MODELS = (".model", ".tiktoken")
_OTHER_MODEL = (
    "SentencePiece or tiktoken model; load it with transformers' AutoTokenizer and save it again, which "
    "writes tokenizer.json"
)
# The keys of a configuration that name a special token.
_SPECIAL_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that encodes special tokens within a text as text, and neither truncates nor pads."""

    tokenizer: Tokenizer
    vocab_size: int
    """The highest id + 1."""
    eos_token: str | None
    eos_id: int | None
    """The end of a text; None if the configuration does not name it."""
    bos_id: int | None
    unk_id: int | None
    """The id of text that the vocabulary does not have; None if there is none, or if it is `eos_id`."""
    model_unk_id: int | None
    """The same, even if it is `eos_id`."""
    source: Path
    """The file or directory that it was read from."""
    sha256: str
    """SHA-256 of tokenizer.json, or of vocab.json followed by merges.txt. A model file's vocabulary is hashed
    in that second form."""
    note: str | None
    """What a user should know about how it was read."""

    literal: Mapping[int, str] = field(default_factory=dict)
    """Added tokens that the tokenizer's decoder does not write as they are."""
    split_known: bool = True
    """Whether the way in which texts are split is the tokenizer's own; otherwise the file does not say."""

    @cached_property
    def identity(self) -> str:
        """What decides its ids, the same in every form that it is stored in: `apr.data.identity`."""
        return tokenizer_identity(self.tokenizer, unk_id=self.model_unk_id, split_known=self.split_known)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ids, including special tokens unless `skip_special`."""
        if not any(id_ in self.literal for id_ in ids):
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special)
        pieces = []
        for literal, run in groupby(ids, self.literal.get):
            group = list(run)
            text = None if literal is None else literal * len(group)
            if text is None or (skip_special and group[0] in self._special):
                text = self.tokenizer.decode(group, skip_special_tokens=skip_special)
            pieces.append(text)
        return "".join(pieces)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(id_ for id_, token in added.items() if token.special)

    def metadata(self) -> dict[str, object]:
        """Return the `tokenizer.*` keys that an .apr file rebuilds it from.

        Empty if those keys cannot express it: another model than byte-level BPE, an unknown pre-tokenizer.
        """
        spec = json.loads(self.tokenizer.to_str())
        pre_type = pre_type_of(spec)
        if pre_type is None:
            return {}
        ids = {id_: token for token, id_ in self.tokenizer.get_vocab().items()}
        # A gap in the ids must keep its place in the list. llama.cpp's converter gives gaps the same names.
        tokens = [ids.get(id_, f"[PAD{id_}]") for id_ in range(self.vocab_size)]
        types = [_NORMAL if id_ in ids else _UNUSED for id_ in range(self.vocab_size)]
        for added in spec["added_tokens"]:
            types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
        keys: dict[str, object] = {
            "tokenizer.vocabulary": tokens,
            "tokenizer.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
            "tokenizer.token_type": types,
            "tokenizer.model_type": "BPE",
            "tokenizer.pre_type": pre_type,
            "tokenizer.vocab_size": self.vocab_size,
            "tokenizer.bos_token_id": self.bos_id,
            "tokenizer.eos_token_id": self.eos_id,
        }
        return {key: value for key, value in keys.items() if value is not None}


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
        return _from_files(path, _read_files(path), eos_token)
    with path.open("rb") as file:
        start = file.read(9)
    format_ = format_of_start(start)
    if format_ == "gguf":
        from apr.gguf.metadata import read_tokenizer_metadata

        return _from_metadata(path, read_tokenizer_metadata(path), eos_token)
    if format_ == "apr":
        import apr

        with apr.load(path) as model:
            metadata = model.metadata
        return tokenizer_from_metadata(path, metadata, eos_token=eos_token)
    files = {**_read_files(path.parent), _TOKENIZER: path.read_bytes()}
    try:
        return _from_json(path, files, eos_token)
    except FormatError:
        # By its name, which is that of a tokenizer even where the contents are damaged.
        what = "" if path.name == _TOKENIZER else _other_file(path)
        if not what:
            raise
        raise FormatError(f"{path}: not a tokenizer, but {what}", path=path) from None


def _other_file(path: Path) -> str:
    """Return what a file that is not a tokenizer.json is; an empty text for what is not recognized."""
    if path.name in _FILES:
        return f"one file of a tokenizer; pass its directory: {path.parent}"
    if path.name.endswith(_OTHER_MODELS):
        return f"a {_OTHER_MODEL}"
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
        files = {name: kept[name].encode() for name in _FILES if isinstance(kept.get(name), str)}
        if _TOKENIZER in files or {_VOCAB, _MERGES} <= files.keys():
            return _from_files(path, files, eos_token)
    return _from_metadata(path, metadata, eos_token)


def _read_files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in _FILES if (directory / name).is_file()}


def _from_files(path: Path, files: Mapping[str, bytes], eos_token: str | None) -> LoadedTokenizer:
    """Build the tokenizer from the files of a directory, or from those that a model file keeps."""
    # First, because it is complete: the pair of files does not say how a text is split before it is merged.
    if _TOKENIZER in files:
        return _from_json(path / _TOKENIZER if path.is_dir() else path, files, eos_token)
    if _VOCAB in files and _MERGES in files:
        return _from_pair(path, files, eos_token)
    reason = "contains neither tokenizer.json nor vocab.json and merges.txt"
    others = [name.name for name in path.iterdir() if name.name.endswith(_OTHER_MODELS)]
    what = f"{others[0]} is a {_OTHER_MODEL}" if others else recognized(path)
    if what:
        reason += f"; {what}" if others else f"; it is {what}"
    raise FileNotFoundError(errno.ENOENT, reason, str(path))


def _from_json(path: Path, files: Mapping[str, bytes], eos_token: str | None) -> LoadedTokenizer:
    from tokenizers import AddedToken, Tokenizer

    content = files[_TOKENIZER]
    spec = _json_object(path, content)
    if not isinstance(spec.get("model"), dict):
        raise FormatError(f"{path}: not a tokenizer.json: the key `model` is missing", path=path)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
        raise FormatError(f"{path}: the tokenizers package cannot read it: {error}", path=path) from None
    config, added = _configuration(path.parent, files)
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
    return _finish(
        tokenizer,
        path,
        sha256=hashlib.sha256(content).hexdigest(),
        # Unigram models have an id, the others a token.
        unknown=spec["model"].get("unk_token", spec["model"].get("unk_id")),
        configured=_token_text(config.get("eos_token")),
        bos=_token_text(config.get("bos_token")),
        requested=eos_token,
    )


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
        special=tuple(special) or tuple(token for token in (END_OF_TEXT, UNKNOWN) if token in ids),
        unknown=UNKNOWN if UNKNOWN in ids else None,
        added=tuple(flags["content"] for flags in added.values() if not flags["special"]),
    )
    is_hex = vocabulary.is_hex()
    tokenizer = (vocabulary.from_hex() if is_hex else vocabulary).build(path)
    return _finish(
        tokenizer,
        path,
        # The ecosystem's definition of `tokenizer_sha256` for a pair: vocab.json, then merges.txt.
        sha256=hashlib.sha256(files[_VOCAB] + files[_MERGES]).hexdigest(),
        configured=_token_text(config.get("eos_token")),
        bos=_token_text(config.get("bos_token")),
        requested=eos_token,
        unknown=vocabulary.unknown,
        note="vocab.json has the hex-byte form" if is_hex else None,
    )


def _from_metadata(path: Path, metadata: Mapping[str, Any], eos_token: str | None) -> LoadedTokenizer:
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
    return _finish(
        vocabulary.build(path),
        path,
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
    return _finish(
        vocabulary.build(),
        path,
        sha256=_list_sha256(listed.ids, json.dumps(scores)),
        configured=listed.named["eos"],
        bos=listed.named["bos"],
        requested=eos_token,
        unknown=vocabulary.unknown,
    )


# The types of tokens that pairs of others are merged to.
_MERGED = frozenset({_NORMAL, _USER_DEFINED})


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
    types = metadata.get("tokenizer.token_type") or [_NORMAL] * len(tokens)
    if not isinstance(types, list):
        raise FormatError(f"{path}: tokenizer.token_type is not a list", path=path)
    special = {token for token, type_ in zip(tokens, types, strict=False) if type_ in (_CONTROL, _UNKNOWN)}
    # The ends are special even if token_type calls them normal tokens.
    special |= {token for token in (named["eos"], named["bos"]) if token is not None}
    ids: dict[str, int] = {}  # a repeated token keeps its first id
    for id_, token in enumerate(tokens):
        ids.setdefault(token, id_)
    added = tuple(token for token, type_ in zip(tokens, types, strict=False) if type_ == _USER_DEFINED)
    return _ListedTokens(ids, types, tuple(sorted(special, key=ids.__getitem__)), added, named)


def _list_sha256(ids: Mapping[str, int], rest: str) -> str:
    as_pair = json.dumps(ids, ensure_ascii=False) + rest
    return hashlib.sha256(as_pair.encode(errors="surrogatepass")).hexdigest()


def _finish(
    tokenizer: Tokenizer,
    source: Path,
    *,
    sha256: str,
    configured: str | None,
    bos: str | None,
    requested: str | None,
    unknown: object = None,
    note: str | None = None,
    split_known: bool = True,
) -> LoadedTokenizer:
    # A tokenizer.json may turn these on. A corpus is encoded in full, and always to the same ids.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    ids = tokenizer.get_vocab()
    if not ids:
        raise FormatError(f"{source}: the vocabulary is empty", path=source)
    eos, eos_note = _end_of_text(source, ids, configured, requested)
    eos_id = None if eos is None else ids[eos]
    unk_id = ids.get(unknown) if isinstance(unknown, str) else unknown if isinstance(unknown, int) else None
    return LoadedTokenizer(
        tokenizer=tokenizer,
        # Not the number of tokens: a vocabulary may have gaps, and every id must be below this.
        vocab_size=max(ids.values()) + 1,
        eos_token=eos,
        eos_id=eos_id,
        bos_id=None if bos is None else ids.get(bos),
        # GPT-2's tokenizers use one id for both. As unknown text, the ends of documents would exceed its
        # limit.
        unk_id=None if unk_id == eos_id else unk_id,
        model_unk_id=unk_id,
        source=source,
        sha256=sha256,
        literal=_literal(tokenizer),
        split_known=split_known,
        note="; ".join(part for part in (note, eos_note) if part) or None,
    )


def _literal(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the added tokens that a byte-level decoder takes for bytes, such as one with the letter ñ."""
    # The state of a component is its JSON, also within a sequence of them.
    decoder = tokenizer.decoder
    if decoder is None or b'"ByteLevel"' not in decoder.__getstate__():
        return {}
    added = tokenizer.get_added_tokens_decoder()
    return {id_: token.content for id_, token in added.items() if not token.content.isascii()}


def _end_of_text(
    source: Path, ids: Mapping[str, int], configured: str | None, requested: str | None
) -> tuple[str | None, str | None]:
    """Return the end-of-text token, and a note about the choice."""
    if requested is not None:
        if requested not in ids:
            raise UsageError(f"{source}: --eos-token {requested!r} is not in the vocabulary", path=source)
        return requested, None
    # SmolLM2-Instruct's configuration names <|im_end|>, but a document is not a turn of a chat.
    if configured in CHAT_ENDS and END_OF_TEXT in ids:
        return (
            END_OF_TEXT,
            f"{END_OF_TEXT} is used as the end of text; the configured {configured} ends a turn of a chat",
        )
    if configured is not None:
        if configured not in ids:
            raise FormatError(
                f"{source}: eos_token {configured!r} of the configuration is not in the vocabulary",
                path=source,
            )
        return configured, None
    # This name and no other. A public encoder guessed, and took </s> for Qwen.
    return (END_OF_TEXT if END_OF_TEXT in ids else None), None


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
        _pair(f"{path}:{number}", tuple(line.rstrip("\r").split(" ")))
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#version")
    ]


def _merge(where: str, merge: object) -> tuple[str, str]:
    """Return a merge of metadata, which is a string with one space or a list of two tokens."""
    if isinstance(merge, str):
        return _pair(where, tuple(merge.split(" ")))
    return _pair(where, tuple(merge) if isinstance(merge, list) else (merge,))


def _pair(where: str, parts: tuple[Any, ...]) -> tuple[str, str]:
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise FormatError(f"{where}: {' '.join(map(str, parts))!r} is not a merge of two tokens")
    return parts[0], parts[1]


def _token_at(path: Path, tokens: Sequence[str], name: str, id_: object) -> str | None:
    if id_ is None:
        return None
    if type(id_) is not int or not 0 <= id_ < len(tokens):
        raise FormatError(
            f"{path}: tokenizer.{name}_token_id is {id_!r}, but the vocabulary has {len(tokens)} tokens",
            path=path,
        )
    return tokens[id_]

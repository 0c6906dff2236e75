"""A tokenizer that was read: its special ids, its identity, and what encodes and decodes with it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from apr._core import Encoder
from apr.data.identity import tokenizer_identity
from apr.data.pre_tokenizers import pre_type_of
from apr.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from apr._core import ByteLevel

END_OF_TEXT = "<|endoftext|>"
# Configurations of chat models name one of these as the end of text, but they end a turn of a conversation.
CHAT_ENDS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>"}
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # GGUF's token types


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that encodes special tokens within a text as text, and neither truncates nor pads."""

    library: Callable[[], Tokenizer]
    """Returns the library's tokenizer, which is read when it is first asked for: that takes long."""
    fast: ByteLevel | None
    """The tokenizer without the library; None if it has no fast path."""
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

    split_known: bool = True
    """Whether the way in which texts are split is the tokenizer's own; otherwise the file does not say."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The library's tokenizer."""
        return self.library()

    @cached_property
    def identity(self) -> str:
        """What decides its ids, the same in every form that it is stored in: `apr.data.identity`."""
        source = self.tokenizer if self.fast is None else self.fast
        return tokenizer_identity(source, unk_id=self.model_unk_id, split_known=self.split_known)

    def encoder(
        self, threads: int, *, before: int | None = None, after: int | None = None, nfc: bool = False
    ) -> Encoder:
        """Return an encoder of texts.

        Args:
            threads: how many encode.
            before: an id before each stored text.
            after: an id after it.
            nfc: whether texts are normalized to NFC first.

        Raises:
            ValueError: the library cannot use the tokenizer.
        """
        source = self.tokenizer.to_str() if self.fast is None else self.fast
        return Encoder(source, threads, before=before, after=after, nfc=nfc)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of ids, including special tokens unless `skip_special`."""
        if self.fast is not None and not skip_special:
            content = self.fast.decode(struct.pack(f"<{len(ids)}I", *ids))
            if content is not None:
                return content.decode(errors="replace")
        literals = self._literal
        if not any(id_ in literals for id_ in ids):
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special)
        pieces = []
        for literal, run in groupby(ids, literals.get):
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

    @cached_property
    def _literal(self) -> dict[int, str]:
        """Added tokens that a byte-level decoder takes for bytes, such as one with the letter ñ."""
        # The state of a component is its JSON, also within a sequence of them.
        decoder = self.tokenizer.decoder
        if decoder is None or b'"ByteLevel"' not in decoder.__getstate__():
            return {}
        added = self.tokenizer.get_added_tokens_decoder()
        return {id_: token.content for id_, token in added.items() if not token.content.isascii()}

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
        types = [NORMAL if id_ in ids else UNUSED for id_ in range(self.vocab_size)]
        for added in spec["added_tokens"]:
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
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


def finish(
    source: Path,
    read: Callable[[], Tokenizer],
    fast: ByteLevel | None,
    *,
    sha256: str,
    configured: str | None,
    bos: str | None,
    requested: str | None,
    unknown: object = None,
    note: str | None = None,
    split_known: bool = True,
) -> LoadedTokenizer:
    """Return a tokenizer with its special ids.

    Args:
        source: the file, as errors name it.
        read: reads it with the tokenizers library.
        fast: the tokenizer as it is read without the library; None if it has no fast path.
        sha256: of its files.
        configured: the end of text that its configuration names.
        bos: the start of text.
        requested: the end of text that the user named.
        unknown: the token, or the id, of text that the vocabulary does not have.
        note: what a user should know about how it was read.
        split_known: whether the way in which texts are split is the tokenizer's own.

    Raises:
        FormatError: the vocabulary is empty, or lacks the configured end of text.
        UsageError: it lacks the one that the user named.
    """

    @cache
    def library() -> Tokenizer:
        tokenizer = read()
        # A tokenizer.json may turn these on. A corpus is encoded in full, and always to the same ids.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None
        return tokenizer

    id_of: Callable[[str], int | None]
    if fast is None:
        ids = library().get_vocab()
        # Not the number of tokens: a vocabulary may have gaps, and every id must be below this.
        id_of, vocab_size = ids.get, max(ids.values(), default=-1) + 1
    else:
        id_of, vocab_size = fast.id, fast.vocab_size
    if not vocab_size:
        raise FormatError(f"{source}: the vocabulary is empty", path=source)
    eos, eos_note = _end_of_text(source, id_of, configured, requested)
    eos_id = None if eos is None else id_of(eos)
    unk_id = id_of(unknown) if isinstance(unknown, str) else unknown if isinstance(unknown, int) else None
    return LoadedTokenizer(
        library=library,
        fast=fast,
        vocab_size=vocab_size,
        eos_token=eos,
        eos_id=eos_id,
        bos_id=None if bos is None else id_of(bos),
        # GPT-2's tokenizers use one id for both. As unknown text, the ends of documents would exceed its
        # limit.
        unk_id=None if unk_id == eos_id else unk_id,
        model_unk_id=unk_id,
        source=source,
        sha256=sha256,
        split_known=split_known,
        note="; ".join(part for part in (note, eos_note) if part) or None,
    )


def _end_of_text(
    source: Path, id_of: Callable[[str], int | None], configured: str | None, requested: str | None
) -> tuple[str | None, str | None]:
    """Return the end-of-text token, and a note about the choice."""
    if requested is not None:
        if id_of(requested) is None:
            raise UsageError(f"{source}: --eos-token {requested!r} is not in the vocabulary", path=source)
        return requested, None
    # SmolLM2-Instruct's configuration names <|im_end|>, but a document is not a turn of a chat.
    if configured in CHAT_ENDS and id_of(END_OF_TEXT) is not None:
        return (
            END_OF_TEXT,
            f"{END_OF_TEXT} is used as the end of text; the configured {configured} ends a turn of a chat",
        )
    if configured is not None:
        if id_of(configured) is None:
            raise FormatError(
                f"{source}: eos_token {configured!r} of the configuration is not in the vocabulary",
                path=source,
            )
        return configured, None
    # This name and no other. A public encoder guessed, and took </s> for Qwen.
    return (None if id_of(END_OF_TEXT) is None else END_OF_TEXT), None

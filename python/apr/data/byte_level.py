"""Byte-level BPE tokenizers out of a vocabulary and its merges."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

# Patterns of the models' own tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _SPLIT % r"\p{N}"
_LLAMA3 = _SPLIT % r"\p{N}{1,3}"

# How a text is cut before merging, under GGUF's names (`tokenizer.ggml.pre`).
KINDS = ("gpt-2", "smollm", "qwen2", "llama-bpe")

_HEX = re.compile(r"(?:[0-9a-f]{2})+")
# Of the 256 keys "00" … "ff": no byte-level vocabulary of text has that many two-digit tokens by chance.
_HEX_KEYS = 200


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary with its merges, in GPT-2's alphabet of printable bytes or in hex."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    pre_type: str
    """One of KINDS."""
    special: tuple[str, ...]
    """Tokens that no text encodes to."""
    unknown: str | None
    """The token for bytes that the vocabulary lacks."""
    matched: tuple[str, ...] = ()
    """Tokens that are found in a text before it is cut."""

    def is_hex(self) -> bool:
        """Whether the tokens are bytes as two hex digits each: the ecosystem's own trainer writes those."""
        return sum(f"{byte:02x}" in self.ids for byte in range(256)) >= _HEX_KEYS

    def from_hex(self) -> Vocabulary:
        """The same ids and merges in GPT-2's alphabet."""
        letters = _alphabet()

        def spelt(token: str) -> str:
            if token in self.special or not _HEX.fullmatch(token):
                return token
            return "".join(letters[byte] for byte in bytes.fromhex(token))

        return replace(
            self,
            ids={spelt(token): id_ for token, id_ in self.ids.items()},
            merges=[(spelt(a), spelt(b)) for a, b in self.merges],
        )

    def build(self, source: Path) -> Tokenizer:
        """The tokenizer.

        Raises:
            FormatError: the merges do not fit the vocabulary; the message names `source`.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers
        from tokenizers.models import BPE

        try:
            model = BPE(
                vocab=dict(self.ids),
                merges=list(self.merges),
                unk_token=self.unknown,
                ignore_merges=self.pre_type == "llama-bpe",
            )
        except Exception as error:  # noqa: BLE001 (the crate raises nothing narrower)
            raise FormatError(f"{source}: merges and vocabulary do not fit: {error}", path=source) from None
        tokenizer = Tokenizer(model)
        if self.pre_type == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = _pre_tokenizer(self.pre_type)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in self.special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self.matched])
        return tokenizer


def pre_type_of(spec: Mapping[str, Any]) -> str | None:
    """Which of KINDS a tokenizer.json has, or None: another model, or cut in another way.

    Args:
        spec: the contents of a tokenizer.json.
    """
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    given = (
        _without_offsets(spec.get("pre_tokenizer")),
        spec.get("normalizer"),
        bool(model.get("ignore_merges")),
    )
    for kind in KINDS:
        normalizer = {"type": "NFC"} if kind == "qwen2" else None
        if given == (_without_offsets(_spec(kind)), normalizer, kind == "llama-bpe"):
            return kind
    return None


def _pre_tokenizer(kind: str) -> Any:  # noqa: ANN401  (the package's stubs know no common class)
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if kind == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    pattern = _QWEN2 if kind == "qwen2" else _LLAMA3
    return Sequence(
        [Split(Regex(pattern), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _spec(kind: str) -> Any:  # noqa: ANN401  (JSON)
    import json

    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(kind)
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


def _without_offsets(value: Any) -> Any:  # noqa: ANN401  (JSON)
    """`trim_offsets` is about offsets: it changes no id."""
    if isinstance(value, dict):
        return {key: _without_offsets(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_without_offsets(inner) for inner in value] if isinstance(value, list) else value


def _alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]

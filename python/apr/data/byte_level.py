"""Byte-level BPE tokenizers built from a vocabulary and its merges."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

# The patterns of the models' own tokenizer.json; Qwen2 and Llama 3 differ in how they cut digits.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _SPLIT % r"\p{N}"
_LLAMA3 = _SPLIT % r"\p{N}{1,3}"

# The known pre-tokenizers, under GGUF's names (`tokenizer.ggml.pre`).
PRE_TYPES = ("gpt-2", "smollm", "qwen2", "llama-bpe")

_HEX = re.compile(r"(?:[0-9a-f]{2})+")
# A vocabulary with this many of the 256 keys "00" … "ff" is in hex. A byte-level vocabulary of text does not
# have that many of them by chance. An encoder that expected the hex form and got the other one once wrote a
# corpus that was 99.99 % <unk>.
_MIN_HEX_KEYS = 200


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary with its merges, in GPT-2's alphabet of printable bytes or in hex."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    pre_type: str
    """One of PRE_TYPES."""
    special: tuple[str, ...]
    """Tokens that no text is encoded to."""
    unknown: str | None
    """The token for bytes that are not in the vocabulary."""
    added: tuple[str, ...] = ()
    """Tokens that are matched in a text before it is split."""

    def is_hex(self) -> bool:
        """Whether the tokens are bytes as two hex digits each, as the ecosystem's own trainer writes them."""
        return sum(f"{byte:02x}" in self.ids for byte in range(256)) >= _MIN_HEX_KEYS

    def from_hex(self) -> Vocabulary:
        """Return a hex vocabulary with the same ids and merges in GPT-2's alphabet."""
        alphabet = gpt2_alphabet()

        def from_hex(token: str) -> str:
            # Names such as <unk> are not hex, and special tokens stay as they are even if they look like it.
            if token in self.special or not _HEX.fullmatch(token):
                return token
            return "".join(alphabet[byte] for byte in bytes.fromhex(token))

        return replace(
            self,
            ids={from_hex(token): id_ for token, id_ in self.ids.items()},
            merges=[(from_hex(a), from_hex(b)) for a, b in self.merges],
        )

    def build(self, source: Path) -> Tokenizer:
        """Return the tokenizer.

        Args:
            source: the file, as an error names it.

        Raises:
            FormatError: a merge makes a token that is not in the vocabulary.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers
        from tokenizers.models import BPE

        try:
            model = BPE(
                vocab=dict(self.ids),
                merges=list(self.merges),
                unk_token=self.unknown,
                # Llama 3 encodes a piece that is in the vocabulary as that token without merging.
                ignore_merges=self.pre_type == "llama-bpe",
            )
        except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
            raise FormatError(
                f"{source}: the merges do not match the vocabulary: {error}", path=source
            ) from None
        tokenizer = Tokenizer(model)
        if self.pre_type == "qwen2":
            # Qwen2's own tokenizer.json normalizes to NFC, the others do not normalize.
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = _pre_tokenizer(self.pre_type)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in self.special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self.added])
        return tokenizer


def pre_type_of(spec: Mapping[str, Any]) -> str | None:
    """Return which of PRE_TYPES a tokenizer.json has; None for another model or another pre-tokenizer.

    Args:
        spec: the contents of a tokenizer.json.
    """
    model = spec["model"]
    # Byte fallback marks SentencePiece vocabularies, whose tokens are characters and not bytes.
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    parts = (
        _without_offsets(spec.get("pre_tokenizer")),
        spec.get("normalizer"),
        bool(model.get("ignore_merges")),
    )
    for pre_type in PRE_TYPES:
        normalizer = {"type": "NFC"} if pre_type == "qwen2" else None
        if parts == (_without_offsets(_pre_tokenizer_spec(pre_type)), normalizer, pre_type == "llama-bpe"):
            return pre_type
    return None


def _pre_tokenizer(pre_type: str) -> Any:  # noqa: ANN401 (the package's stubs have no common class)
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre_type == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if pre_type == "smollm":
        # SmolLM2 encodes each digit by itself, and otherwise as GPT-2 does.
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    pattern = _QWEN2 if pre_type == "qwen2" else _LLAMA3
    return Sequence(
        [Split(Regex(pattern), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _pre_tokenizer_spec(pre_type: str) -> Any:  # noqa: ANN401 (JSON)
    """Return a pre-tokenizer as tokenizer.json spells it: the package serializes whole tokenizers only."""
    import json

    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(pre_type)
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


def _without_offsets(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Return JSON without `trim_offsets`, which changes offsets only, not ids."""
    if isinstance(value, dict):
        return {key: _without_offsets(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_without_offsets(inner) for inner in value] if isinstance(value, list) else value


def gpt2_alphabet() -> list[str]:
    """Return the printable character that GPT-2's vocabularies use for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # The other bytes get the characters from 256 on, in order.
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]

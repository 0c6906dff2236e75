"""Byte-level BPE tokenizers built from a vocabulary and its merges."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from apr._core import ByteLevel
from apr.data.pre_tokenizers import PRE_TYPES, pre_tokenizer
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

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

    def readers(self, source: Path) -> tuple[Callable[[], Tokenizer], ByteLevel | None]:
        """Return what builds the library's tokenizer, and the tokenizer without the library.

        Args:
            source: the file, as an error names it.
        """
        spec = json.loads(self._without_tokens().to_str())
        spec["model"] |= {"vocab": self.ids, "merges": self.merges}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        spec["added_tokens"] = [
            {"id": self.ids.get(token), "content": token, **flags, "special": special}
            for tokens, special in ((self.special, True), (self.added, False))
            for token in tokens
        ]
        content = json.dumps(spec, ensure_ascii=False).encode(errors="surrogatepass")
        return partial(self.build, source), ByteLevel.read(content)

    def build(self, source: Path) -> Tokenizer:
        """Return the library's tokenizer.

        Args:
            source: the file, as an error names it.

        Raises:
            FormatError: a merge makes a token that is not in the vocabulary.
        """
        from tokenizers import AddedToken
        from tokenizers.models import BPE

        tokenizer = self._without_tokens()
        try:
            tokenizer.model = BPE(
                vocab=dict(self.ids),
                merges=list(self.merges),
                unk_token=self.unknown,
                ignore_merges=PRE_TYPES[self.pre_type].ignore_merges,
            )
        except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
            raise FormatError(
                f"{source}: the merges do not match the vocabulary: {error}", path=source
            ) from None
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in self.special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self.added])
        return tokenizer

    def _without_tokens(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, normalizers
        from tokenizers.models import BPE

        kind = PRE_TYPES[self.pre_type]
        tokenizer = Tokenizer(BPE(unk_token=self.unknown, ignore_merges=kind.ignore_merges))
        if kind.nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizer(self.pre_type)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


def checked_merge(where: str, parts: tuple[Any, ...]) -> tuple[str, str]:
    """Return the two tokens of a merge.

    Args:
        where: the place in a file, as an error names it.
        parts: what is there.

    Raises:
        FormatError: there is something else than two tokens.
    """
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise FormatError(f"{where}: {' '.join(map(str, parts))!r} is not a merge of two tokens")
    return parts[0], parts[1]


def gpt2_alphabet() -> list[str]:
    """Return the printable character that GPT-2's vocabularies use for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # The other bytes get the characters from 256 on, in order.
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]

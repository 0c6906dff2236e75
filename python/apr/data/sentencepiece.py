"""SentencePiece's BPE rebuilt from a vocabulary with scores, as GGUF files of Llama 2 and Mistral have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

_SPACE = "\u2581"


@dataclass(frozen=True)
class ScoredVocabulary:
    """Tokens that are characters, of which the pair with the highest score is merged first."""

    ids: Mapping[str, int]
    scores: Mapping[str, float]
    """The scores of the tokens that text is merged to."""
    special: tuple[str, ...]
    """Tokens that no text is encoded to."""
    unknown: str | None
    added: tuple[str, ...]
    """Tokens that are matched in a text before it is merged."""
    space_first: bool
    """Whether a space is put before a text."""

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges, the first one first: every way to make a token of two others, by its score."""
        made = [
            (score, token[:at], token[at:])
            for token, score in self.scores.items()
            for at in range(1, len(token))
            if token[:at] in self.ids and token[at:] in self.ids
        ]
        # The sort is stable: of equal scores, the lower id goes first.
        made.sort(key=lambda merge: -merge[0])
        return [(left, right) for _, left, right in made]

    def build(self) -> Tokenizer:
        """Return the tokenizer, as transformers has it for Llama 2."""
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers
        from tokenizers.models import BPE

        tokenizer = Tokenizer(
            BPE(
                vocab=dict(self.ids),
                merges=self.merges(),
                unk_token=self.unknown,
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        mark = normalizers.Replace(" ", _SPACE)
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.space_first:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), mark])
            steps.append(decoders.Strip(" ", 1, 0))
        else:
            tokenizer.normalizer = mark
        tokenizer.decoder = decoders.Sequence(steps)
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in self.special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self.added])
        return tokenizer

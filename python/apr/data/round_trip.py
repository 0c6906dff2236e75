"""Whether a tokenizer keeps the text of a corpus, judged by its ids and in the tokenizer's own terms."""

from __future__ import annotations

import unicodedata
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from apr.data.documents import Document
    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.sample import Sample

# A byte-level vocabulary has a token for any text. Another kind misses next to nothing of text that it fits,
# and most of any other, so the limit need not be exact.
MAX_UNKNOWN_SHARE = 0.001
# Characters of lost text in a message.
_SHOWN = 12


def text_loss(tokenizer: LoadedTokenizer, sample: Sample) -> str | None:
    """Return what a tokenizer loses of a sample of text, in words; None if it keeps it.

    A tokenizer may change text before it splits it: compose or lower characters, mark spaces, put one before
    the first word. That is how its model was trained, and not a loss. Nor does it matter whether its decoder
    writes the text as it was. But every character of the changed text must be in a token, and next to none in
    the token for unknown text.
    """
    total = sum(map(len, sample.ids))
    # A sample has no ends of text, which may have the same id.
    unknown_id = tokenizer.model_unk_id
    if unknown_id is not None:
        unknown = sum(int(np.count_nonzero(ids == unknown_id)) for ids in sample.ids)
        # Before the first shard: one encoding of 228 shards turned out to be 99.99 % <unk> only after
        # training on it.
        if unknown > MAX_UNKNOWN_SHARE * total:
            return (
                f"{unknown / total:.1%} of a sample of the corpus becomes the unknown token (id {unknown_id})"
            )
    for document, ids in zip(sample.documents, sample.ids, strict=True):
        if _comes_back(tokenizer, document.text, ids):
            continue
        if (lost := _lost_text(tokenizer.tokenizer, document.text, ids)) is not None:
            return f"it does not preserve {document.name}: {lost}"
    return None


def changed_text(tokenizer: LoadedTokenizer, documents: tuple[Document, ...]) -> str | None:
    """Return the first way in which a tokenizer's normalizer changes text other than spaces, in words."""
    # With a fast path, a tokenizer composes characters or changes nothing.
    normalizer = None if tokenizer.fast is not None else tokenizer.tokenizer.normalizer
    if normalizer is None:
        return None
    for document in documents:
        before = _without_spaces(unicodedata.normalize("NFC", document.text))
        after = _without_spaces(unicodedata.normalize("NFC", normalizer.normalize_str(document.text)))
        if before != after:
            at = _first_difference(before, after)
            return f"{before[at : at + _SHOWN]!r} becomes {after[at : at + _SHOWN]!r}"
    return None


def _comes_back(tokenizer: LoadedTokenizer, text: str, ids: NDArray[np.uint32]) -> bool:
    decoded = tokenizer.decode(ids.tolist())
    return decoded == text or unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)


def _lost_text(tokenizer: Tokenizer, text: str, ids: NDArray[np.uint32]) -> str | None:
    """Return which characters of a text are in no token, in words; None if all are in one."""
    if tokenizer.encode(text, add_special_tokens=False).ids != ids.tolist():
        return "its ids are not those of the tokenizers package; please report this"
    normalizer = tokenizer.normalizer
    normalized = text if normalizer is None else normalizer.normalize_str(text)
    with _only_splitting(tokenizer):
        offsets = tokenizer.encode(normalized, add_special_tokens=False).offsets
    # How many tokens cover each character, from where tokens begin and end.
    changes = np.zeros(len(normalized) + 1, np.int64)
    for start, end in offsets:
        changes[start] += 1
        changes[end] -= 1
    lost = np.flatnonzero(np.cumsum(changes)[:-1] == 0)
    if not len(lost):
        return None
    at = int(lost[0])
    return f"character {at}, in {normalized[max(0, at - _SHOWN) : at + _SHOWN]!r}, is in no token"


@contextmanager
def _only_splitting(tokenizer: Tokenizer) -> Iterator[None]:
    """Turn off what comes before and after the tokens: a post-processor may cut spaces off their offsets."""
    normalizer, post_processor = tokenizer.normalizer, tokenizer.post_processor
    tokenizer.normalizer = tokenizer.post_processor = None
    try:
        yield
    finally:
        tokenizer.normalizer, tokenizer.post_processor = normalizer, post_processor


def _first_difference(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _without_spaces(text: str) -> str:
    # SentencePiece writes spaces as U+2581.
    return "".join(text.replace("\u2581", " ").split())

"""A look at a corpus before it is encoded: how much it will be, and whether its text comes back."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from apr.data.corpus import Document
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from apr.data.corpus import Corpus, CorpusFile, Skipped
    from apr.data.tokenizers import LoadedTokenizer

Normalization = Literal["none", "nfc"]

# Files looked at, spread evenly over the corpus, and text read of each: half a second of encoding.
_FILES = 32
_CHARACTERS = 1 << 15
# Of a byte-level vocabulary no token is unknown; of one that does not fit the text, most are.
MAX_UNKNOWN_SHARE = 0.001


@dataclass(frozen=True)
class Sample:
    """Some documents of a corpus, and what they say about all of it."""

    documents: tuple[Document, ...]
    """Normalised."""
    items: Iterator[tuple[int, Document | Skipped]]
    """The whole corpus from its start, those of standard input that were looked at too."""
    tokens: int | None
    """Estimate for the whole corpus, without ends of text; None for standard input."""
    documents_in_all: int | None
    """Estimate; None for standard input."""


def normalised(text: str, normalization: Normalization) -> str:
    """The text in the Unicode form that was asked for."""
    return unicodedata.normalize("NFC", text) if normalization == "nfc" else text


def sample(corpus: Corpus, tokenizer: LoadedTokenizer, normalization: Normalization) -> Sample:
    """Look at some documents.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
    """
    if corpus.nbytes is None:
        everything = corpus.items()
        head = list(_until_enough(everything))
        looked_at = tuple(_normalised(item, normalization) for _, item in head if isinstance(item, Document))
        return Sample(looked_at, chain(head, everything), None, None)
    step = max(1, len(corpus.files) // _FILES)
    files = corpus.files[::step]
    heads = [_head(corpus, file) for file in files]
    found = [[_normalised(d, normalization) for d in items if isinstance(d, Document)] for items in heads]
    # What was read of a file stands for the rest of it, what was read of the files for the others.
    scale = corpus.nbytes / max(1, sum(file.nbytes for file in files))
    tokens = count = 0.0
    for items, documents in zip(heads, found, strict=True):
        share = items[-1].done if items else 1.0
        ids = tokenizer.encode([document.text for document in documents])
        tokens += sum(map(len, ids)) / max(share, 1e-9)
        count += len(documents) / max(share, 1e-9)
    return Sample(
        tuple(chain.from_iterable(found)), corpus.items(), round(tokens * scale), round(count * scale)
    )


def self_test(tokenizer: LoadedTokenizer, documents: Sequence[Document]) -> None:
    """Encode documents and decode them again.

    Raises:
        RefusedError: the text does not come back, or too much of it is unknown to the vocabulary; the
            message names a document.
    """
    encoded = tokenizer.encode([document.text for document in documents])
    total = sum(map(len, encoded))
    unknown = 0 if tokenizer.unk_id is None else sum(ids.count(tokenizer.unk_id) for ids in encoded)
    if unknown > MAX_UNKNOWN_SHARE * total:
        raise RefusedError(
            f"{tokenizer.source}: {unknown / total:.1%} of a sample of the corpus is unknown to this "
            f"vocabulary (id {tokenizer.unk_id}): use the tokenizer that fits the text"
        )
    for document, ids in zip(documents, encoded, strict=True):
        # A tokenizer may normalise (Qwen2's does); what it must not do is lose text.
        text, back = (unicodedata.normalize("NFC", t) for t in (document.text, tokenizer.decode(ids)))
        if text != back:
            at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
            raise RefusedError(
                f"{tokenizer.source}: this tokenizer does not give the text of {document.name} back: from "
                f"character {at} on {text[at : at + 12]!r} became {back[at : at + 12]!r}; "
                "use the tokenizer that fits the text"
            )


def _normalised(document: Document, normalization: Normalization) -> Document:
    return Document(document.name, normalised(document.text, normalization), document.done)


def _head(corpus: Corpus, file: CorpusFile) -> list[Document | Skipped]:
    found: list[Document | Skipped] = []
    characters = 0
    for item in corpus.read(file):
        if not found and isinstance(item, Document) and len(item.text) > _CHARACTERS:
            share = item.done * _CHARACTERS / len(item.text)
            return [Document(item.name, item.text[:_CHARACTERS], share)]
        found.append(item)
        characters += 1 + (len(item.text) if isinstance(item, Document) else 0)
        if characters >= _CHARACTERS:
            break
    return found


def _until_enough(
    items: Iterator[tuple[int, Document | Skipped]],
) -> Iterator[tuple[int, Document | Skipped]]:
    characters = 0
    for position, item in items:
        yield position, item
        characters += 1 + (len(item.text) if isinstance(item, Document) else 0)
        if characters >= _FILES * _CHARACTERS:
            return

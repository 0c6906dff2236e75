"""A look at a corpus before it is encoded: how much it will be, and whether its text comes back."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np

from apr.data.corpus import Document
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from apr.data.corpus import Batch, Corpus, Place
    from apr.data.tokenizers import LoadedTokenizer

    Encode = Callable[[Sequence[str]], list[NDArray[np.uint32]]]

Normalization = Literal["none", "nfc"]

# Files looked at, spread evenly over the corpus, and text read of each: a tenth of a second of encoding.
_FILES = 32
_CHARACTERS = 1 << 15
# Of a byte-level vocabulary no token is unknown; of one that does not fit the text, most are.
MAX_UNKNOWN_SHARE = 0.001


@dataclass(frozen=True)
class Sample:
    """Some documents of a corpus, and what they say about all of it."""

    documents: tuple[Document, ...]
    """Normalized."""
    ids: list[NDArray[np.uint32]]
    """Of each document."""
    batches: Iterator[Batch]
    """The corpus from the place that was asked for, what was looked at of standard input too."""
    tokens: int | None
    """Estimate for the whole corpus, without ends of text; None for standard input."""
    documents_in_all: int | None
    """Estimate; None for standard input."""


def draw_sample(corpus: Corpus, encode: Encode, normalization: Normalization, start: Place) -> Sample:
    """Look at some documents.

    Args:
        corpus: the corpus.
        encode: gives the ids of texts.
        normalization: the form that texts are brought into.
        start: where the batches begin; of standard input what lies before is not looked at.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
    """
    if corpus.nbytes is None:
        everything = corpus.batches(start)
        first = next(everything, None)
        head = [] if first is None else [first]
        looked_at = [item for batch in head for item in corpus.looks(batch) if isinstance(item, Document)]
        documents = tuple(_normalized(document, normalization) for document in _few(looked_at))
        ids = encode([document.text for document in documents])
        return Sample(documents, ids, chain(head, everything), None, None)
    chosen = range(0, len(corpus.files), max(1, len(corpus.files) // _FILES))
    heads = [corpus.head(index, _CHARACTERS) for index in chosen]
    found = [[_normalized(document, normalization) for document in some] for some, _ in heads]
    encoded = [encode([document.text for document in some]) for some in found]
    # What was read of a file stands for the rest of it, what was read of the files for the others.
    scale = corpus.nbytes / max(1, sum(corpus.files[index].nbytes for index in chosen))
    tokens = count = 0.0
    for (some, share), of_each in zip(heads, encoded, strict=True):
        tokens += sum(map(len, of_each)) / max(share, 1e-9)
        # Of a text file the start is looked at: it is one document all the same.
        count += max(1.0, len(some) / max(share, 1e-9)) if len(some) > 1 else len(some)
    return Sample(
        documents=tuple(chain.from_iterable(found)),
        ids=list(chain.from_iterable(encoded)),
        batches=corpus.batches(start),
        tokens=round(tokens * scale),
        documents_in_all=round(count * scale),
    )


def check_round_trip(tokenizer: LoadedTokenizer, looked_at: Sample) -> None:
    """Decode what was looked at again.

    Raises:
        RefusedError: the text does not come back, or too much of it is unknown to the vocabulary; the
            message names a document.
    """
    total = sum(map(len, looked_at.ids))
    unknown = sum(int(np.count_nonzero(ids == tokenizer.unk_id)) for ids in looked_at.ids)
    if tokenizer.unk_id is not None and unknown > MAX_UNKNOWN_SHARE * total:
        raise RefusedError(
            f"{tokenizer.source}: {unknown / total:.1%} of a sample of the corpus is unknown to this "
            f"vocabulary (id {tokenizer.unk_id}): use the tokenizer that fits the text"
        )
    for document, ids in zip(looked_at.documents, looked_at.ids, strict=True):
        # A tokenizer may normalize (Qwen2's does); what it must not do is lose text.
        back = tokenizer.decode(ids.tolist())
        text, back = (unicodedata.normalize("NFC", t) for t in (document.text, back))
        if text != back:
            at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
            raise RefusedError(
                f"{tokenizer.source}: this tokenizer does not give the text of {document.name} back: from "
                f"character {at} on {text[at : at + 12]!r} became {back[at : at + 12]!r}; "
                "use the tokenizer that fits the text"
            )


def _normalized(document: Document, normalization: Normalization) -> Document:
    if normalization == "none":
        return document
    return Document(document.name, unicodedata.normalize("NFC", document.text))


def _few(documents: Sequence[Document]) -> Iterator[Document]:
    """The first ones, as much text as is looked at of files."""
    characters = 0
    for document in documents:
        if characters >= _FILES * _CHARACTERS:
            return
        yield Document(document.name, document.text[: _FILES * _CHARACTERS])
        characters += len(document.text)

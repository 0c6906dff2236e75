"""A sample of a corpus before it is encoded, and how many tokens the corpus will have."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from apr.data.documents import Document
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from apr.data.corpus import Corpus
    from apr.data.documents import Batch, Place

    EncodeTexts = Callable[[Sequence[str]], list[NDArray[np.uint32]]]

Normalization = Literal["none", "nfc"]

# Files in the sample, spread evenly over the corpus, and characters of each: a tenth of a second of encoding.
_FILES = 32
_CHARACTERS = 1 << 15
# Integers of 16 bits and more have a NUL in two bytes if they are small enough to be valid UTF-8. Text has
# none but by mistake.
_MAX_NUL_SHARE, _MIN_CHARACTERS = 0.125, 64


@dataclass(frozen=True)
class Sample:
    """Some documents of a corpus, and what they tell about all of it."""

    documents: tuple[Document, ...]
    """The documents, normalized."""
    ids: list[NDArray[np.uint32]]
    """The ids of each document."""
    batches: Iterator[Batch]
    """The corpus from the requested place on, including what the sample read of standard input."""
    tokens: int | None
    """Estimated tokens of the whole corpus, without ends of text; None for standard input."""


def draw_sample(
    corpus: Corpus,
    encode_texts: EncodeTexts,
    normalization: Normalization,
    start: Place,
    stop: Place | None = None,
) -> Sample:
    """Read and encode some documents of a corpus.

    Args:
        corpus: the corpus.
        encode_texts: returns the ids of each text.
        normalization: the Unicode form of the texts.
        start: where `batches` begin. Of standard input, the sample is taken from there.
        stop: where they end; None is the end of the corpus.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
        RefusedError: no row of a file has the text field.
    """

    def normalized(document: Document) -> Document:
        if normalization == "none":
            return document
        return Document(document.name, unicodedata.normalize("NFC", document.text))

    if corpus.nbytes is None:
        # Standard input can be read once: its first batch is sampled, and then encoded like the others.
        batches = corpus.batches(start)
        first = next(batches, None)
        head = [] if first is None else [first]
        stored = [item for batch in head for item in corpus.read_all(batch) if isinstance(item, Document)]
        documents = tuple(normalized(document) for document in _first_texts(stored))
        ids = encode_texts([document.text for document in documents])
        return Sample(documents, ids, chain(head, batches), None)

    corpus.check_fields(start, stop)
    # Evenly spread, not random: the estimate decides how many digits the names of shards have, and they must
    # be the same each time.
    indices = range(0, len(corpus.files), max(1, len(corpus.files) // _FILES))
    heads = [corpus.head(index, _CHARACTERS) for index in indices]
    texts_of_files = [[normalized(document) for document in documents] for documents, _ in heads]
    ids_of_files = [encode_texts([document.text for document in texts]) for texts in texts_of_files]
    # The head of a file stands for the rest of it, and the sampled files stand for the others.
    scale = corpus.nbytes / max(1, sum(corpus.files[index].nbytes for index in indices))
    tokens = 0.0
    for (_, share), ids_of_file in zip(heads, ids_of_files, strict=True):
        # An empty file has a share of 0.
        tokens += sum(map(len, ids_of_file)) / max(share, 1e-9)
    return Sample(
        documents=tuple(chain.from_iterable(texts_of_files)),
        ids=list(chain.from_iterable(ids_of_files)),
        batches=corpus.batches(start, stop),
        tokens=round(tokens * scale),
    )


def check_is_text(name: str, nuls: int, characters: int) -> None:
    """Check that text is not binary data that is valid UTF-8 by chance, such as small integers.

    Args:
        name: what the error names.
        nuls: the number of NUL characters.
        characters: the number of all characters.

    Raises:
        RefusedError: it is not text.
    """
    share = nuls / max(1, characters)
    if share > _MAX_NUL_SHARE and characters >= _MIN_CHARACTERS:
        raise RefusedError(
            f"{name}: {share:.0%} of its characters are NUL, so it has binary data, not text; "
            "leave it out with --exclude, or, if it has token ids, import them with apr tokenize import",
            path=name,
        )


def _first_texts(documents: Sequence[Document]) -> Iterator[Document]:
    """Yield as much text as is sampled of files."""
    characters = 0
    for document in documents:
        if characters >= _FILES * _CHARACTERS:
            return
        yield Document(document.name, document.text[: _FILES * _CHARACTERS])
        characters += len(document.text)

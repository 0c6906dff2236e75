"""How many tokens, documents and shards an encoding will have: counted, or estimated from a sample."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from apr.data.corpus_part import place_in_file
from apr.data.corpus_stream import is_compressed
from apr.data.documents import Document, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apr.data.corpus import Corpus

    CountTokens = Callable[[Sequence[str]], Sequence[int]]

# A corpus up to this size is encoded to be counted: some seconds. Compressed files and Parquet count as what
# they typically hold.
_COUNTED_BYTES = 64 << 20
_TYPICAL_RATIO = 4
# Of a larger one, so many places are sampled, evenly spread over its bytes, and about so many characters at
# each. The mean of 512 places is within 1 % where the tokens of a byte vary by a fifth from place to place.
_PLACES = 512
_CHARACTERS = 1 << 16
# Compressed files, arrays and Parquet are read as a whole, because their ends may have other text than their
# starts: about 300 MB of text a second. Of more than this, some files stand for the others.
_WHOLE_BYTES = 2 << 30


@dataclass(frozen=True)
class Estimate:
    """What an encoding will have."""

    tokens: int
    """With ends of text."""
    documents: int
    shards: int
    counted: bool
    """Whether the corpus was encoded to count them, so that they are exact."""


def is_small(corpus: Corpus) -> bool:
    """Whether a corpus is small enough to be encoded for an estimate."""
    sizes = (
        file.nbytes * (_TYPICAL_RATIO if file.format == "parquet" or is_compressed(file.path) else 1)
        for file in corpus.files
    )
    return sum(sizes) <= _COUNTED_BYTES


def estimated_totals(corpus: Corpus, count_tokens: CountTokens) -> tuple[float, float]:
    """Return the tokens of a corpus without ends of text, and its documents, from a sample.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
    """
    ends = list(accumulate(file.nbytes for file in corpus.files))
    nbytes = ends[-1]
    stands_for = _read_as_a_whole(corpus)
    sampled: dict[Place, _Sampled] = {}
    tokens = documents = 0.0
    # In plain JSON lines.
    lines_found = bytes_found = 0.0
    for number in range(_PLACES):
        byte = int((number + 0.5) * nbytes / _PLACES)
        index = bisect_right(ends, byte)
        file = corpus.files[index]
        if index in stands_for:
            place = Place(stands_for[index])
        else:
            place = place_in_file(corpus, index, byte - (ends[index] - file.nbytes))
        if place not in sampled:
            sample = _sample_all if index in stands_for else _sample
            sampled[place] = sample(corpus, place, count_tokens)
        found = sampled[place]
        tokens += found.tokens / max(1.0, found.stored) * nbytes / _PLACES
        if index in stands_for:
            documents += found.documents / max(1.0, found.stored) * nbytes / _PLACES
        elif file.format == "jsonl":
            # Sums first, and then their ratio: reading stops after a document, more often after a long one,
            # and the mean of ratios would not be that of all documents.
            lines_found += found.documents
            bytes_found += found.stored
    for index, file in enumerate(corpus.files):
        if file.format == "text":
            documents += 1
        elif file.format == "jsonl" and index not in stands_for:
            documents += file.nbytes * lines_found / max(1.0, bytes_found)
    return tokens, documents


class _Sampled(NamedTuple):
    """Some of a file."""

    tokens: float
    documents: float
    stored: float
    """The bytes that it takes in the file."""


def _read_as_a_whole(corpus: Corpus) -> dict[int, int]:
    """Return the files that can only be read from their start, each with the one that stands for it."""
    indices = [
        index
        for index, file in enumerate(corpus.files)
        if file.format in ("json", "parquet") or (file.format == "jsonl" and is_compressed(file.path))
    ]
    step = 1 + sum(corpus.files[index].nbytes for index in indices) // _WHOLE_BYTES
    return {index: indices[n // step * step] for n, index in enumerate(indices)}


def _sample_all(corpus: Corpus, place: Place, count_tokens: CountTokens) -> _Sampled:
    """Read a file, and encode batches of it that are evenly spread."""
    # Tokens, documents, lines and bytes of the batches whose number is a multiple of `step`.
    kept: list[tuple[int, int, int, int]] = []
    step, lines, read = 1, 0, 0
    for number, batch in enumerate(corpus.batches_at(place, _CHARACTERS)):
        size = sum(len(item or b"") for item in batch.stored) if batch.format != "skipped" else 0
        lines, read = lines + len(batch.stored), read + size
        if number % step == 0:
            texts = [item.text for item in corpus.read_all(batch) if isinstance(item, Document)]
            kept.append((sum(count_tokens(texts)), len(texts), len(batch.stored), size))
        if len(kept) == _PLACES:
            # Its number of batches is not known before: the longer it is, the fewer of them are encoded.
            kept, step = kept[::2], 2 * step
    tokens, documents, kept_lines, kept_bytes = map(sum, zip(*kept, strict=True)) if kept else (0, 0, 1, 1)
    return _Sampled(
        tokens * read / max(1, kept_bytes),
        documents * lines / max(1, kept_lines),
        corpus.files[place.file].nbytes,
    )


def _sample(corpus: Corpus, place: Place, count_tokens: CountTokens) -> _Sampled:
    """Read and encode some documents of a file from a place on."""
    file = corpus.files[place.file]
    if file.format == "text":
        documents, share = corpus.head(place.file, _CHARACTERS)
        texts = [document.text for document in documents]
        return _Sampled(sum(count_tokens(texts)), len(texts), share * file.nbytes)
    batch = next(corpus.batches_at(place, _CHARACTERS), None)
    if batch is None or batch.format == "skipped":
        return _Sampled(0, 0, file.nbytes)
    texts = [item.text for item in corpus.read_all(batch) if isinstance(item, Document)]
    return _Sampled(sum(count_tokens(texts)), len(texts), sum(map(len, batch.stored)))

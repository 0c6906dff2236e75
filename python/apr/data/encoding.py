"""The state of an encoding: what it encodes with, its place in the corpus, and the ids of the open shard.

Three things happen at the same time: the main thread reads the corpus in batches as they are stored, Rust
threads encode the previous batches, and another thread hashes and writes the last closed shard.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from apr.data.corpus_part import parse_part, part_range
from apr.data.documents import Batch, Document, Place, Skipped
from apr.data.estimate import Estimate, estimated_totals, is_small
from apr.data.listing import ID_DTYPE
from apr.data.manifest import SCHEMA, Manifest, ShardRow
from apr.data.round_trip import changed_text, text_loss
from apr.data.sample import Sample, draw_sample
from apr.data.scan import corpus_sha256
from apr.data.shard_writer import CorpusPosition, ShardWriter
from apr.errors import FormatError, RefusedError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from apr._core import Encoded
    from apr.data.corpus import Corpus
    from apr.data.encode_options import EncodeOptions
    from apr.data.loaded_tokenizer import LoadedTokenizer

# Batches that are encoded at the same time: while the last text of one keeps one core busy, the next one has
# work for the others.
_CONCURRENT_BATCHES = 2
# All skipped documents are counted. The report names this many.
_MAX_NAMED = 20


@dataclass(frozen=True)
class Progress:
    """The progress of an encoding. Documents, tokens and shards include those of the run that it resumes."""

    read: int
    """Bytes of the corpus files that were read, as stored."""
    total: int | None
    """Bytes of all corpus files; None if standard input is one."""
    text: int
    """Bytes of text that this run encoded."""
    encoded: int
    """Tokens that this run encoded."""
    documents: int
    tokens: int
    shards: int


class _Documents(NamedTuple):
    """The ids of a batch, and facts about each of its documents: int64 or bool [documents]."""

    ids: NDArray[np.uint32]
    counts: NDArray[np.int64]
    """Its ids; 0 if it is none."""
    is_document: NDArray[np.bool_]
    skipped: NDArray[np.int64]
    """How many were skipped in its place."""
    text_bytes: NDArray[np.int64]


@dataclass
class Encoding:
    """The state of an encoding: its position in the corpus, and the ids of the open shard."""

    options: EncodeOptions
    tokenizer: LoadedTokenizer
    corpus: Corpus
    started: float = field(default_factory=time.monotonic)
    position: CorpusPosition = field(default_factory=CorpusPosition)
    """The position after the open shard."""
    name_digits: int = 0
    """Digits of the numbers in shard names."""
    skipped: list[Skipped] = field(default_factory=list)
    """The first documents that were skipped."""
    skipped_files: set[str] = field(default_factory=set)
    """Files of which no document was encoded."""
    text_loss: str | None = None
    """What the tokenizer loses of the text."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about the tokenizer."""
    text_bytes: int = 0
    _encoded: int = 0
    _seconds_before: float = 0.0
    _closed_tokens: int = 0
    _closed_documents: int = 0
    _open: list[NDArray[np.uint32]] = field(default_factory=list)
    _open_tokens: int = 0
    _open_lengths: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.part = None if self.options.part is None else parse_part(self.options.part)
        self._range = None if self.part is None else part_range(self.corpus, self.part)
        if self._range is not None:
            self.position = CorpusPosition(self._range.start)
            self.corpus.lines_from = self._range.start
        policy, eos_id = self.options.eos_policy, self.tokenizer.eos_id
        self._eos_before = eos_id if policy == "between" else None
        self._eos_after = eos_id if policy == "after" else None
        # The cores that this process may use, not those of the machine: a container or taskset may allow
        # fewer.
        self._threads = self.options.workers or len(os.sched_getaffinity(0))
        with self._naming_the_tokenizer():
            self._encoder = self.tokenizer.encoder(
                self._threads,
                before=self._eos_before,
                after=self._eos_after,
                nfc=self.options.normalization == "nfc",
            )

    @contextmanager
    def _naming_the_tokenizer(self) -> Iterator[None]:
        """Add the tokenizer's name to its library's errors, such as a missing unknown token."""
        try:
            yield
        except ValueError as error:
            source = self.tokenizer.source
            raise FormatError(
                f"{source}: this tokenizer cannot encode the corpus: {error}", path=source
            ) from None

    def resume(self, manifest: dict[str, Any]) -> None:
        """Continue where the manifest's last shard ends."""
        place = Place(*manifest["progress"]["place"])
        counts = manifest["total_documents"], manifest["skipped_documents"], manifest.get("text_bytes")
        self.position = CorpusPosition(place, *counts)
        self._closed_documents = self.position.documents
        self._closed_tokens = manifest["total_tokens"]
        self._seconds_before = manifest["elapsed_seconds"]

    def sample(self, start: Place) -> Sample:
        """Return a sample of the corpus, with its batches from a place on."""
        stop = None if self._range is None else self._range.stop
        return draw_sample(self.corpus, self._encode_texts, self.options.normalization, start, stop)

    def estimate(self) -> Estimate:
        """Return what the encoding will have: counted in a small corpus, and else estimated."""
        start = self.position.place
        stop = None if self._range is None else self._range.stop
        self.corpus.check_fields(start, stop)
        if not is_small(self.corpus):
            return self._estimate_from_sample()
        tokens = shards = 0
        for batch in self.corpus.batches(start, stop):
            found = self._counted(batch, self._encode_batch(batch))
            documents = self.position.documents + int(found.is_document.sum())
            self.position = CorpusPosition(start, documents)
            ends = np.cumsum(found.counts)
            at = taken = 0
            while at < len(ends):
                at, is_full = self._end_of_shard(ends, taken)
                count, taken = int(ends[at - 1]) - taken, int(ends[at - 1])
                self._open_tokens += count
                if is_full:
                    shards, self._open_tokens = shards + 1, 0
            tokens += taken
        shards += bool(self._open_tokens)
        return Estimate(tokens, self.position.documents, shards, counted=True)

    def _estimate_from_sample(self) -> Estimate:
        tokens, documents = estimated_totals(
            self.corpus, lambda texts: [len(ids) for ids in self._encode_texts(texts)]
        )
        if self._range is not None:
            share = self._range.nbytes / max(1, self.corpus.nbytes or 0)
            tokens, documents = tokens * share, documents * share
        # One end of text for each document. `between` has one less, which is nothing to an estimate.
        if self.options.eos_policy != "none":
            tokens += documents
        shards = -(-round(tokens) // self.options.shard_tokens)
        return Estimate(round(tokens), round(documents), shards, counted=False)

    def check_tokenizer(self, sample: Sample) -> None:
        """Check that the tokenizer keeps the text of a sample.

        Raises:
            RefusedError: it loses text, and the options do not allow that.
        """
        source = self.tokenizer.source
        self.text_loss = text_loss(self.tokenizer, sample)
        if self.text_loss is not None and not self.options.allow_text_loss:
            raise RefusedError(
                f"{source}: {self.text_loss}; use a tokenizer that fits the text, or pass --allow-text-loss",
                path=source,
            )
        if (change := changed_text(self.tokenizer, sample.documents)) is not None:
            self.notes.append(f"{source}: this tokenizer changes text before it encodes it: {change}")
        if self.text_loss is not None:
            self.notes.append(f"{source}: {self.text_loss}; allowed, and recorded as text_loss")

    def run(
        self, batches: Iterator[Batch], writer: ShardWriter, on_progress: Callable[[Progress], None]
    ) -> None:
        """Encode batches into shards."""
        with ThreadPoolExecutor(_CONCURRENT_BATCHES, "encode") as pool:
            pending: deque[tuple[Batch, Future[Encoded]]] = deque()
            try:
                for batch in batches:
                    pending.append((batch, pool.submit(self._encode_batch, batch)))
                    # In the order of the corpus, whichever batch is done first: the bytes must not depend on
                    # the threads.
                    if len(pending) > _CONCURRENT_BATCHES:
                        self._add(*pending.popleft(), writer, on_progress)
                while pending:
                    self._add(*pending.popleft(), writer, on_progress)
            except BaseException:
                # Leaving the pool waits for its threads. A batch may take minutes; Ctrl-C must not.
                self._encoder.stop()
                raise
        if self._open_tokens:
            self._close_shard(writer)
        # An error of the last shard is raised here, and not lost on its thread.
        writer.wait()

    def manifest(
        self, rows: Sequence[ShardRow], position: CorpusPosition, *, complete: bool = False
    ) -> Manifest:
        """Return the manifest for shards that were written."""
        from apr import __version__

        options = self.options
        # A part has an end of text before its first document too: it does not know whether others are before
        # it.
        between = position.documents if self.part else max(0, position.documents - 1)
        eos_count = {"none": 0, "between": between, "after": position.documents}
        manifest: Manifest = {
            "schema": SCHEMA,
            "complete": complete,
            "tokenizer_dir": str(options.tokenizer),
            "tokenizer_sha256": self.tokenizer.sha256,
            "tokenizer_identity": self.tokenizer.identity,
            "vocab_size": self.tokenizer.vocab_size,
            "eos_policy": options.eos_policy,
            "eos_token_id": self.tokenizer.eos_id,
            "unk_token_id": self.tokenizer.unk_id,
            "eos_token_count": eos_count[options.eos_policy],
            "shard_count": len(rows),
            "total_tokens": sum(row["tokens"] for row in rows),
            "total_documents": position.documents,
            "skipped_documents": position.skipped,
            "text_bytes": position.text_bytes,
            "content_field": options.content_field,
            "normalization": options.normalization,
            "input_format": self.corpus.format,
            "input_files": [str(file.path) for file in self.corpus.files],
            "input_bytes": self.corpus.nbytes,
            "skipped_hidden": len(self.corpus.hidden),
            "corpus_roots": self.corpus.roots,
            "corpus_sha256": corpus_sha256(row["sha256"] or "" for row in rows),
            # This key and the next are the only two in which encodings of the same corpus differ.
            "num_workers": self._threads,
            "elapsed_seconds": round(self._seconds_before + time.monotonic() - self.started, 3),
            "seq_length_hint": None,
            "shard_tokens": options.shard_tokens,
            "producer_version": f"apr {__version__}",
            "shards": list(rows),
        }
        if self.text_loss is not None:
            manifest["text_loss"] = self.text_loss
        if self._range is not None:
            manifest["part"] = str(self.part)
            manifest["part_range"] = {
                "start": list(self._range.start),
                "stop": list(self._range.stop),
                "corpus_files": self.corpus.fingerprint(),
                "name_digits": self.name_digits,
            }
        # Only while it is unfinished: the fingerprint covers file times, and a complete manifest must be the
        # same for the same corpus.
        if not complete:
            manifest["progress"] = {"place": list(position.place), "options": self._identity}
        return manifest

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the first one, besides the keys of the manifest."""
        return {
            "shard_tokens": self.options.shard_tokens,
            "pattern": list(self.options.pattern),
            "exclude": list(self.options.exclude),
            "corpus_files": self.corpus.fingerprint(),
        }

    def no_text_error(self) -> RefusedError:
        """Return the error for a corpus without any text."""
        skipped = counted(self.position.skipped, "document")
        first, hint = "", ""
        if self.skipped:
            first = f"; the first, {self.skipped[0].name}: {self.skipped[0].reason}"
            hint = self.skipped[0].hint
        return RefusedError(
            f"{', '.join(self.corpus.roots)}: no text to encode ({skipped} skipped{first}){hint}"
        )

    def _encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, without ends of text."""
        if not texts:
            return []
        with self._naming_the_tokenizer():
            encoded = self._encoder.encode(texts)
        ends = np.cumsum(np.frombuffer(encoded.counts, "<i8"))
        return np.split(np.frombuffer(encoded.ids, ID_DTYPE), ends[:-1])

    def _encode_batch(self, batch: Batch) -> Encoded:
        with self._naming_the_tokenizer():
            match batch.format:
                case "text":
                    encoded = self._encoder.encode_files(batch.stored)
                case "jsonl" | "json":
                    encoded = self._encoder.encode_lines(batch.stored, self.options.content_field)
                case "parquet":
                    encoded = self._encoder.encode_values(batch.stored)
                case _:
                    # Skipped documents are handled like those that Rust rejects.
                    encoded = self._encoder.encode_values([None] * len(batch.stored))
        return encoded

    def _add(
        self,
        batch: Batch,
        future: Future[Encoded],
        writer: ShardWriter,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Add the ids of a batch to the open shard, and close every shard that becomes full."""
        encoded = future.result()
        ids, counts, is_document, skipped, text = self._counted(batch, encoded)
        ends = np.cumsum(counts)
        start = taken = 0
        while start < len(counts):
            stop, is_full = self._end_of_shard(ends, taken)
            # Slices, not copies: the shard is written part by part, and its ids are in memory once.
            self._open.append(ids[taken : ends[stop - 1]])
            self._open_tokens += int(ends[stop - 1]) - taken
            if self.part is not None:
                self._open_lengths.append(counts[start:stop][is_document[start:stop]])
            before = self.position.text_bytes
            self.position = CorpusPosition(
                batch.after(stop),
                self.position.documents + int(is_document[start:stop].sum()),
                self.position.skipped + int(skipped[start:stop].sum()),
                None if before is None else before + int(text[start:stop].sum()),
            )
            if is_full:
                self._close_shard(writer)
            start, taken = stop, int(ends[stop - 1])
        self.text_bytes += int(text.sum())
        self._encoded += taken
        # Last, because the callback may raise KeyboardInterrupt: the state is consistent by now.
        on_progress(
            Progress(
                read=batch.read - (self._range.read_before if self._range else 0),
                total=self._range.nbytes if self._range else self.corpus.nbytes,
                text=self.text_bytes,
                encoded=self._encoded,
                documents=self.position.documents,
                tokens=self._closed_tokens + self._open_tokens,
                shards=len(writer.rows),
            )
        )

    def _counted(self, batch: Batch, encoded: Encoded) -> _Documents:
        """Return the documents of an encoded batch.

        The first document of all has no end of text before it.
        """
        ids = np.frombuffer(encoded.ids, ID_DTYPE)
        counts = np.frombuffer(encoded.counts, "<i8").copy()  # from bytes, an array is read-only
        text = np.frombuffer(encoded.text_bytes, "<i8").copy()
        skipped = np.zeros(len(counts), np.int64)
        if (counts < 0).any():
            ids = self._encode_rejected(batch, ids, counts, skipped, text)
        is_document = counts >= 0
        # Documents that are still rejected have a count of -1.
        np.maximum(counts, 0, out=counts)
        is_first = self.part is None and not self.position.documents
        if self._eos_before is not None and is_first and is_document.any():
            ids = ids[1:]
            counts[is_document.argmax()] -= 1
        return _Documents(ids, counts, is_document, skipped, text)

    def _end_of_shard(self, ends: NDArray[np.int64], taken: int) -> tuple[int, bool]:
        """Return the documents of a batch up to the end of the open shard, and whether they fill it.

        Args:
            ends: the ids of the batch up to the end of each document.
            taken: those that are in shards already.
        """
        # By bisection: a batch may have thousands of documents, and Python looks at each shard only.
        last = int(np.searchsorted(ends, taken + self.options.shard_tokens - self._open_tokens))
        return min(last + 1, len(ends)), last < len(ends)

    def _encode_rejected(
        self,
        batch: Batch,
        ids: NDArray[np.uint32],
        counts: NDArray[np.int64],
        skipped: NDArray[np.int64],
        text: NDArray[np.int64],
    ) -> NDArray[np.uint32]:
        """Read the documents that Rust rejected (a count of -1) in Python, and encode those that are valid.

        Python's JSON parser accepts more than the standard: NaN, a byte order mark, a thousand levels.
        `counts`, `skipped` and `text` are updated in place.
        """
        pieces = np.split(ids, np.cumsum(np.maximum(counts, 0))[:-1])
        eos_before = [] if self._eos_before is None else [np.array([self._eos_before], ID_DTYPE)]
        eos_after = [] if self._eos_after is None else [np.array([self._eos_after], ID_DTYPE)]
        # One at a time: rejected documents are rare, and each needs a reason of its own.
        for n in np.flatnonzero(counts < 0).tolist():
            item = self.corpus.read(batch, n)
            if isinstance(item, Document):
                pieces[n] = np.concatenate([*eos_before, *self._encode_texts([item.text]), *eos_after])
                counts[n], text[n] = len(pieces[n]), len(item.text.encode(errors="surrogatepass"))
            elif item is not None:
                self._skip(item)
                if batch.format in ("text", "skipped"):
                    self.skipped_files.add(item.name)
                skipped[n] = item.count
        return np.concatenate(pieces)

    def _skip(self, item: Skipped) -> None:
        if self.options.strict:
            raise RefusedError(f"{item.name}: {item.reason}; leave out --strict to skip such documents")
        if len(self.skipped) < _MAX_NAMED:
            self.skipped.append(item)

    def _close_shard(self, writer: ShardWriter) -> None:
        documents = self.position.documents - self._closed_documents
        lengths = np.concatenate(self._open_lengths).astype("<u8") if self._open_lengths else None
        writer.write(self._open, documents, self.position, lengths)
        self._closed_tokens += self._open_tokens
        self._closed_documents = self.position.documents
        self._open, self._open_tokens, self._open_lengths = [], 0, []

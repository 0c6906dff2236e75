"""A corpus to token shards: the same bytes every time, whatever the workers, killed and resumed or not.

Three things go on at once: the main thread reads the corpus in batches as they are stored, Rust makes ids of
the batches before on threads of its own, and a closed shard is hashed and written behind both.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from apr._core import Encoder
from apr.data.corpus import START, Batch, Corpus, Document, Place, Skipped
from apr.data.encode_options import EncodeOptions, prepare
from apr.data.manifest import MANIFEST, SCHEMA, write_manifest
from apr.data.output_dir import (
    check_corpus_unchanged,
    check_kept_shards,
    check_same_encoding,
    clear_output,
    lock_output,
    manifest_to_resume,
)
from apr.data.sample import Sample, check_round_trip, draw_sample
from apr.data.scan import corpus_sha256
from apr.data.shard_writer import Reached, ShardWriter
from apr.errors import FormatError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from apr.data.tokenizers import LoadedTokenizer

    Found = tuple[bytes, bytes, int]

# Batches encoded at once: when the last text of one keeps one core busy, the next has work for the others.
_AT_ONCE = 2
# Past this many shards, six digits: five might not last.
_SIX_DIGITS_FROM = 90_000
# Documents that are skipped are all counted; this many are named.
_NAMED = 20


@dataclass(frozen=True)
class Progress:
    """How far an encoding is."""

    read: int
    """Bytes of the corpus files, as stored."""
    total: int | None
    """Bytes of all of them; None if standard input is one."""
    text: int
    """Bytes of text encoded by this run."""
    encoded: int
    """Tokens encoded by this run."""
    documents: int
    """All, those of the run that is continued too; so are tokens and shards."""
    tokens: int
    shards: int


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding made."""

    manifest: dict[str, Any]
    tokenizer: LoadedTokenizer
    text_bytes: int
    """Bytes of text encoded by this run: nothing where it was resumed from the end."""
    seconds: float
    skipped: tuple[Skipped, ...]
    """The first documents that were skipped; the manifest counts all of them."""
    complete_before: bool = False
    """Whether nothing was left to do."""


def look_at(options: EncodeOptions, tokenizer: LoadedTokenizer, corpus: Corpus) -> Sample:
    """A sample of the corpus: an estimate, and nothing is written.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
    """
    return _Run(options, tokenizer, corpus).look_at(START)


def encode_corpus(
    options: EncodeOptions, on_progress: Callable[[Progress], None] = lambda _: None
) -> EncodeReport:
    """Encode a corpus into a directory of shards with a manifest.

    An exception that a signal raises (KeyboardInterrupt) comes out when the shards that were closed before
    are on the disk with their manifest; `resume` continues.

    Raises:
        UsageError: options that contradict themselves; no known end of text; standard input to be resumed.
        RefusedError: shards are already there, or another encoding is writing them; the text does not come
            back from its tokens; with `strict`, a document that is none; a resumed run differs from the one
            it continues; the corpus changed on the way.
        FormatError: a corpus file or the tokenizer is damaged.
        OSError: reading or writing failed; `resume` continues.
    """
    started = time.monotonic()
    tokenizer, corpus = prepare(options)
    with lock_output(options.output):
        run = _Run(options, tokenizer, corpus, started)
        found = manifest_to_resume(options.output, resume=options.resume, force=options.force)
        rows: list[dict[str, Any]] = []
        if found is not None:
            check_same_encoding(options.output, found, run.manifest([], Reached(), complete=False), corpus)
            if found.get("complete") is not False:
                return EncodeReport(found, tokenizer, 0, time.monotonic() - started, (), complete_before=True)
            rows = found["shards"]
            check_kept_shards(options.output, rows)
            run.resume(found)
        probe = run.look_at(run.reached.place)
        check_round_trip(tokenizer, probe)
        clear_output(options.output, keep=found is not None)
        if found is None:
            write_manifest(options.output, run.manifest([], run.reached, complete=False))
        six = (probe.tokens or 0) > _SIX_DIGITS_FROM * options.shard_tokens
        digits = len(rows[0]["name"]) - len("shard-.bin") if rows else 5 + six
        with ShardWriter(options.output, rows, digits, run.manifest) as writer:
            run.go(probe.batches, writer, on_progress)
        if not writer.rows:
            (options.output / MANIFEST).unlink()
            first = f"; the first, {run.named[0].name}: {run.named[0].reason}" if run.named else ""
            raise RefusedError(
                f"{', '.join(corpus.roots)}: no text to encode "
                f"({run.reached.skipped:,} document{'s' * (run.reached.skipped != 1)} skipped{first})"
            )
        check_corpus_unchanged(options.output, corpus, run.skipped_files)
        manifest = run.manifest(writer.rows, run.reached, complete=True)
        write_manifest(options.output, manifest)
    return EncodeReport(manifest, tokenizer, run.text_bytes, time.monotonic() - started, tuple(run.named))


@dataclass
class _Run:
    """The state of an encoding: how far it is, and the tokens of the open shard."""

    options: EncodeOptions
    tokenizer: LoadedTokenizer
    corpus: Corpus
    started: float = field(default_factory=time.monotonic)
    reached: Reached = field(default_factory=Reached)
    """With the open shard."""
    named: list[Skipped] = field(default_factory=list)
    skipped_files: set[str] = field(default_factory=set)
    """Of which nothing was taken."""
    text_bytes: int = 0
    _encoded: int = 0
    _elapsed_before: float = 0.0
    _closed_tokens: int = 0
    _closed_documents: int = 0
    _open: list[NDArray[np.uint32]] = field(default_factory=list)
    _open_tokens: int = 0

    def __post_init__(self) -> None:
        ends = self.tokenizer.eos_id
        policy = self.options.eos_policy
        self._threads = self.options.workers or len(os.sched_getaffinity(0))
        with self._tokenizing():
            self._encoder = Encoder(
                self.tokenizer.tokenizer.to_str(),
                self._threads,
                before=ends if policy == "between" else None,
                after=ends if policy == "after" else None,
                nfc=self.options.normalization == "nfc",
            )

    @contextmanager
    def _tokenizing(self) -> Iterator[None]:
        """Name the tokenizer where its library says no more than what it misses."""
        try:
            yield
        except ValueError as error:
            source = self.tokenizer.source
            raise FormatError(
                f"{source}: this tokenizer fails at a text of the corpus: {error}", path=source
            ) from None

    def resume(self, manifest: dict[str, Any]) -> None:
        """Take up where a manifest says that whole shards end."""
        place = Place(*manifest["progress"]["place"])
        self.reached = Reached(place, manifest["total_documents"], manifest["skipped_documents"])
        self._closed_documents = self.reached.documents
        self._closed_tokens = manifest["total_tokens"]
        self._elapsed_before = manifest["elapsed_seconds"]

    def look_at(self, start: Place) -> Sample:
        """A sample of the corpus, and its batches from a place on."""
        return draw_sample(self.corpus, self._ids, self.options.normalization, start)

    def go(
        self, batches: Iterator[Batch], writer: ShardWriter, on_progress: Callable[[Progress], None]
    ) -> None:
        """Encode what is left of the corpus."""
        with ThreadPoolExecutor(_AT_ONCE, "encode") as pool:
            waiting: deque[tuple[Batch, Future[Found]]] = deque()
            try:
                for batch in batches:
                    waiting.append((batch, pool.submit(self._encode, batch)))
                    if len(waiting) > _AT_ONCE:
                        self._take(*waiting.popleft(), writer, on_progress)
                while waiting:
                    self._take(*waiting.popleft(), writer, on_progress)
            except BaseException:
                self._encoder.stop()
                raise
        if self._open_tokens:
            self._close(writer)
        writer.wait()

    def manifest(
        self, rows: Sequence[dict[str, Any]], reached: Reached, *, complete: bool = False
    ) -> dict[str, Any]:
        """The manifest of what has been written."""
        from apr import __version__

        options = self.options
        ends = {"none": 0, "between": max(0, reached.documents - 1), "after": reached.documents}
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": complete,
            "tokenizer_dir": str(options.tokenizer),
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "eos_policy": options.eos_policy,
            "eos_token_id": self.tokenizer.eos_id,
            "unk_token_id": self.tokenizer.unk_id,
            "eos_token_count": ends[options.eos_policy],
            "shard_count": len(rows),
            "total_tokens": sum(row["tokens"] for row in rows),
            "total_documents": reached.documents,
            "skipped_documents": reached.skipped,
            "content_field": options.content_field,
            "normalization": options.normalization,
            "input_format": self.corpus.format,
            "input_files": [str(file.path) for file in self.corpus.files],
            "input_bytes": self.corpus.nbytes,
            "corpus_roots": self.corpus.roots,
            "corpus_sha256": corpus_sha256(row["sha256"] for row in rows),
            "num_workers": self._threads,
            "elapsed_seconds": round(self._elapsed_before + time.monotonic() - self.started, 3),
            "seq_length_hint": None,
            "shard_tokens": options.shard_tokens,
            "producer_version": f"apr {__version__}",
            "shards": list(rows),
        }
        if not complete:
            found["progress"] = {"place": list(reached.place), "options": self._identity}
        return found

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Beside what the manifest says: what a resumed run has to have in common with the first."""
        return {
            "shard_tokens": self.options.shard_tokens,
            "pattern": list(self.options.pattern),
            "exclude": list(self.options.exclude),
            "corpus_files": self.corpus.fingerprint(),
        }

    def _ids(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, without ends of text."""
        with self._tokenizing():
            ids, counts, _ = self._encoder.encode(texts)
        ends = np.cumsum(np.frombuffer(counts, "<i8"))
        return np.split(np.frombuffer(ids, "<u4"), ends[:-1]) if texts else []

    def _encode(self, batch: Batch) -> Found:
        with self._tokenizing():
            match batch.format:
                case "text":
                    return self._encoder.encode_files(batch.stored)
                case "jsonl":
                    return self._encoder.encode_lines(batch.stored, self.options.content_field)
                case "parquet":
                    return self._encoder.encode_values(batch.stored)
                case _:
                    return self._encoder.encode_values([None] * len(batch.stored))

    def _take(
        self,
        batch: Batch,
        encoded: Future[Found],
        writer: ShardWriter,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Put the ids of a batch into shards."""
        found, each, text_bytes = encoded.result()
        ids, counts = np.frombuffer(found, "<u4"), np.frombuffer(each, "<i8").copy()
        skipped = np.zeros(len(counts), np.int64)
        if (counts < 0).any():
            ids = self._look_closer(batch, ids, counts, skipped)
        documents = counts >= 0
        np.maximum(counts, 0, out=counts)
        if self.options.eos_policy == "between" and not self.reached.documents and documents.any():
            # Nothing stands before the first of all texts.
            ids = ids[1:]
            counts[documents.argmax()] -= 1
        ends = np.cumsum(counts)
        start = taken = 0
        while start < len(counts):
            # The first document that fills the open shard ends it.
            full = int(np.searchsorted(ends, taken + self.options.shard_tokens - self._open_tokens))
            stop = min(full + 1, len(counts))
            self._open.append(ids[taken : ends[stop - 1]])
            self._open_tokens += int(ends[stop - 1]) - taken
            self.reached = Reached(
                batch.after(stop),
                self.reached.documents + int(documents[start:stop].sum()),
                self.reached.skipped + int(skipped[start:stop].sum()),
            )
            if full < len(counts):
                self._close(writer)
            start, taken = stop, int(ends[stop - 1])
        self.text_bytes += text_bytes
        self._encoded += taken
        on_progress(
            Progress(
                read=batch.read,
                total=self.corpus.nbytes,
                text=self.text_bytes,
                encoded=self._encoded,
                documents=self.reached.documents,
                tokens=self._closed_tokens + self._open_tokens,
                shards=len(writer.rows),
            )
        )

    def _look_closer(
        self, batch: Batch, ids: NDArray[np.uint32], counts: NDArray[np.int64], skipped: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """Skip what Rust took for no text (a count of -1), or encode what Python makes a text of after all.

        Python reads JSON that is none, strictly: NaN, a byte order mark, a thousand levels.
        """
        pieces = np.split(ids, np.cumsum(np.maximum(counts, 0))[:-1])
        before, after = (
            [np.array([self.tokenizer.eos_id], "<u4")] * (self.options.eos_policy == policy)
            for policy in ("between", "after")
        )
        for n in np.flatnonzero(counts < 0).tolist():
            item = self.corpus.look(batch, n)
            if isinstance(item, Document):
                pieces[n] = np.concatenate([*before, *self._ids([item.text]), *after])
                counts[n] = len(pieces[n])
            elif item is not None:
                self._name(item)
                if batch.format in ("text", "skipped"):
                    self.skipped_files.add(item.name)
                skipped[n] = item.count
        return np.concatenate(pieces)

    def _name(self, item: Skipped) -> None:
        if self.options.strict:
            raise RefusedError(f"{item.name}: {item.reason} (without --strict it is skipped)")
        if len(self.named) < _NAMED:
            self.named.append(item)

    def _close(self, writer: ShardWriter) -> None:
        writer.write(self._open, self.reached.documents - self._closed_documents, self.reached)
        self._closed_tokens += self._open_tokens
        self._closed_documents = self.reached.documents
        self._open, self._open_tokens = [], 0

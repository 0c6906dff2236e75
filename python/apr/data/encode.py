"""A corpus to token shards: the same bytes every time, whatever the workers, killed and resumed or not."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from apr._core import Encoder
from apr.data.corpus import Corpus, Document, Skipped
from apr.data.manifest import check_manifest, read_manifest, write_manifest
from apr.data.missing_manifest import MANIFEST, SCHEMA
from apr.data.sample import Normalization, normalised, sample, self_test
from apr.data.scan import corpus_sha256
from apr.data.shards import list_shards
from apr.data.tokenizers import LoadedTokenizer, load_tokenizer
from apr.errors import RefusedError, UsageError
from apr.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

EosPolicy = Literal["none", "between", "after"]

# Text of a batch: enough to keep every core busy, little enough for progress to be seen.
_BATCH_CHARACTERS = 1 << 20
# Past this many shards, six digits: five might not last.
_SIX_DIGITS_FROM = 90_000
# Documents that are skipped are all counted; this many are named.
_NAMED = 20
# Characters of a value in an error: a list of files may be long.
_SHOWN = 120
# What makes two encodings the same one, beside `progress.options`.
_SAME = ("tokenizer_sha256", "eos_policy", "eos_token_id", "content_field", "normalization", "corpus_roots")
# And beside those in one that is complete, where it records them.
_SAME_IF_RECORDED = ("input_files", "input_bytes", "shard_tokens")


@dataclass(frozen=True)
class EncodeOptions:
    """What to encode, with what, and where to; the flags of `apr tokenize encode` have the same names."""

    corpus: tuple[str, ...]
    """Text files, directories, .jsonl(.gz|.zst), .parquet; - reads JSONL from standard input."""
    tokenizer: Path
    """A directory (tokenizer.json, or vocab.json and merges.txt), a tokenizer.json, an .apr or .gguf."""
    output: Path
    """The shard directory."""
    pattern: tuple[str, ...] = ()
    """Globs that a file below a directory has to match one of."""
    exclude: tuple[str, ...] = ()
    """Globs below each directory that are left out, such as 'test/*'."""
    content_field: str = "content"
    """The key or column of JSONL and parquet that holds the text."""
    eos_policy: EosPolicy = "between"
    """Where the end of text stands: between two documents, after each, or nowhere."""
    eos_token: str | None = None
    """The token that ends a text, against what the tokenizer's configuration says."""
    normalization: Normalization = "none"
    """The Unicode form texts are brought into."""
    shard_tokens: int = 10_000_000
    """A shard is closed after the document that reaches this many tokens."""
    workers: Annotated[int | None, tyro.conf.arg(aliases=["--num-workers"])] = None
    """Threads (default: one for each core); they decide nothing but the time."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Refuse the corpus if a document is no UTF-8 or lacks the field."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue an encoding that was cut off."""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the shards that are already there."""


@dataclass(frozen=True)
class Progress:
    """How far an encoding is."""

    read: int
    """Bytes of the corpus files, as stored."""
    total: int | None
    """Bytes of all of them; None if standard input is one."""
    text: int
    """Bytes of text encoded by this run."""
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


def prepare(options: EncodeOptions) -> tuple[LoadedTokenizer, Corpus]:
    """The tokenizer and the corpus of an encoding.

    Raises:
        UsageError: options that contradict themselves; no known end of text.
    """
    if options.resume and options.force:
        raise UsageError("--resume keeps what --force replaces: choose one")
    for flag, value in (("--shard-tokens", options.shard_tokens), ("--workers", options.workers)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: at least 1 is needed")
    if options.workers is not None:
        # The crate reads both from the environment; the number of threads only before its first batch.
        os.environ["RAYON_NUM_THREADS"] = str(options.workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.workers > 1 else "false"
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    if tokenizer.eos_id is None and options.eos_policy != "none":
        raise UsageError(
            f"{options.tokenizer}: nothing says which token ends a text: name it with --eos-token, "
            "or use --eos-policy none"
        )
    corpus = Corpus(
        options.corpus,
        patterns=options.pattern,
        exclude=options.exclude,
        content_field=options.content_field,
        without=options.output,
    )
    return tokenizer, corpus


def encode(options: EncodeOptions, on_progress: Callable[[Progress], None] = lambda _: None) -> EncodeReport:
    """Encode a corpus into a directory of shards with a manifest.

    Raises:
        UsageError: options that contradict themselves; no known end of text.
        RefusedError: shards are already there; the text does not come back from its tokens; with `strict`,
            a document that is none; a resumed run differs from the one it continues.
        FormatError: a corpus file or the tokenizer is damaged.
        OSError: reading or writing failed; `resume` continues.
    """
    started = time.monotonic()
    tokenizer, corpus = prepare(options)
    run = _Run(options, tokenizer, corpus)
    found = _existing(options)
    if found is not None:
        _refuse_difference(options.output, found, run.manifest(complete=False))
        if found.get("complete") is not False:
            return EncodeReport(found, tokenizer, 0, time.monotonic() - started, ())
        run.resume(found)
    probe = sample(corpus, tokenizer, options.normalization)
    self_test(tokenizer, probe.documents)
    if probe.tokens is not None and probe.tokens > _SIX_DIGITS_FROM * options.shard_tokens:
        run.digits = 6
    options.output.mkdir(parents=True, exist_ok=True)
    if found is None:
        _clear(options.output)
        write_manifest(options.output, run.manifest(complete=False))
    run.go(probe.items, on_progress)
    if not run.rows:
        (options.output / MANIFEST).unlink()
        raise RefusedError(f"{', '.join(corpus.roots)}: no text to encode ({run.skipped} documents skipped)")
    run.elapsed = time.monotonic() - started
    manifest = run.manifest(complete=True)
    write_manifest(options.output, manifest)
    return EncodeReport(manifest, tokenizer, run.text_bytes, run.elapsed, tuple(run.named))


@dataclass
class _Run:
    """The state of an encoding: all that its manifest says, and the tokens of the open shard."""

    options: EncodeOptions
    tokenizer: LoadedTokenizer
    corpus: Corpus
    digits: int = 5
    rows: list[dict[str, Any]] = field(default_factory=list)
    items: int = 0
    documents: int = 0
    eos: int = 0
    skipped: int = 0
    named: list[Skipped] = field(default_factory=list)
    text_bytes: int = 0
    elapsed: float = 0.0
    _encoder: Encoder | None = None
    _open: list[NDArray[np.uint32]] = field(default_factory=list)
    _open_tokens: int = 0
    _open_documents: int = 0

    def resume(self, manifest: dict[str, Any]) -> None:
        """Take up where a manifest says that whole shards end; one it does not know yet is written again."""
        progress = manifest["progress"]
        self.rows = manifest["shards"]
        self.items, self.skipped = progress["items"], manifest["skipped_documents"]
        self.documents, self.eos = manifest["total_documents"], manifest["eos_token_count"]
        for row in self.rows:
            path = self.options.output / row["name"]
            content = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                raise RefusedError(
                    f"{path}: not the shard that was written there: --force encodes all of it anew"
                )

    def go(
        self, items: Iterator[tuple[int, Document | Skipped]], on_progress: Callable[[Progress], None]
    ) -> None:
        """Encode what is left of the corpus."""
        for batch in _batches(islice(items, self.items, None)):
            documents = [item for _, item in batch if isinstance(item, Document)]
            texts = [normalised(document.text, self.options.normalization) for document in documents]
            encoded = iter(self._ids(texts))
            for _, item in batch:
                self.items += 1
                if isinstance(item, Skipped):
                    self._skip(item)
                else:
                    self._add(next(encoded))
            self.text_bytes += sum(len(text.encode()) for text in texts)
            tokens = sum(row["tokens"] for row in self.rows) + self._open_tokens
            on_progress(Progress(batch[-1][0], self.corpus.nbytes, self.text_bytes, tokens, len(self.rows)))
        if self._open_tokens:
            self._close()

    def _ids(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text."""
        if self._encoder is None:
            threads = self.options.workers or len(os.sched_getaffinity(0))
            self._encoder = Encoder(self.tokenizer.tokenizer.to_str(), threads)
        ids, counts = self._encoder.encode(texts)
        return np.split(np.frombuffer(ids, "<u4"), np.cumsum(counts)[:-1]) if counts else []

    def manifest(self, *, complete: bool) -> dict[str, Any]:
        """The manifest of what has been written."""
        from apr import __version__

        options = self.options
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": complete,
            "tokenizer_dir": str(options.tokenizer),
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "eos_policy": options.eos_policy,
            "eos_token_id": self.tokenizer.eos_id,
            "eos_token_count": self.eos,
            "shard_count": len(self.rows),
            "total_tokens": sum(row["tokens"] for row in self.rows),
            "total_documents": self.documents,
            "skipped_documents": self.skipped,
            "content_field": options.content_field,
            "normalization": options.normalization,
            "input_format": self.corpus.format,
            "input_files": [str(file.path) for file in self.corpus.files],
            "input_bytes": self.corpus.nbytes,
            "corpus_roots": self.corpus.roots,
            "corpus_sha256": corpus_sha256(row["sha256"] for row in self.rows),
            "num_workers": options.workers or len(os.sched_getaffinity(0)),
            "elapsed_seconds": round(self.elapsed, 3),
            "seq_length_hint": None,
            "shard_tokens": options.shard_tokens,
            "producer_version": f"apr {__version__}",
            "shards": self.rows,
        }
        if not complete:
            found["progress"] = {"items": self.items, "options": self._identity()}
        return found

    def _identity(self) -> dict[str, Any]:
        """Beside what the manifest says: what a resumed run has to have in common with the first."""
        return {
            "shard_tokens": self.options.shard_tokens,
            "pattern": list(self.options.pattern),
            "exclude": list(self.options.exclude),
            "corpus_files": self.corpus.fingerprint(),
        }

    def _skip(self, item: Skipped) -> None:
        if self.options.strict:
            raise RefusedError(f"{item.name}: {item.reason} (without --strict it is skipped)")
        self.skipped += item.count
        if len(self.named) < _NAMED:
            self.named.append(item)

    def _add(self, ids: NDArray[np.uint32]) -> None:
        eos_id, policy = self.tokenizer.eos_id, self.options.eos_policy
        if policy == "between" and self.documents and eos_id is not None:
            self._append(np.array([eos_id], "<u4"))
            self.eos += 1
        self._append(ids)
        if policy == "after" and eos_id is not None:
            self._append(np.array([eos_id], "<u4"))
            self.eos += 1
        self.documents += 1
        self._open_documents += 1
        if self._open_tokens >= self.options.shard_tokens:
            self._close()
            write_manifest(self.options.output, self.manifest(complete=False))

    def _append(self, ids: NDArray[np.uint32]) -> None:
        self._open.append(ids)
        self._open_tokens += len(ids)

    def _close(self) -> None:
        name = f"shard-{len(self.rows):0{self.digits}d}.bin"
        if len(name) > len(f"shard-{'0' * self.digits}.bin"):
            raise RefusedError(
                f"{self.options.output}: more shards than {self.digits} digits number: raise --shard-tokens"
            )
        content = np.concatenate(self._open).tobytes()
        write_atomically(self.options.output / name, content)
        row = {
            "name": name,
            "tokens": self._open_tokens,
            "documents": self._open_documents,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        self.rows.append(row)
        self._open, self._open_tokens, self._open_documents = [], 0, 0


def _batches(
    items: Iterator[tuple[int, Document | Skipped]],
) -> Iterator[list[tuple[int, Document | Skipped]]]:
    batch, characters = [], 0
    for position, item in items:
        batch.append((position, item))
        # A document without a text counts too: a million of them is a large batch.
        characters += 1 + (len(item.text) if isinstance(item, Document) else 0)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _existing(options: EncodeOptions) -> dict[str, Any] | None:
    """The manifest of the encoding that is to be continued, or None for a new one."""
    output = options.output
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(20, "not a directory: shards need one", str(output))
    shards, has_manifest = any(output.glob("*.bin")), (output / MANIFEST).exists()
    if options.force or not (shards or has_manifest):
        return None
    if not options.resume:
        raise RefusedError(
            f"{output}: already holds shards: --resume continues an encoding that was cut off, "
            "--force replaces them"
        )
    if not has_manifest:
        raise RefusedError(f"{output}: shards without a manifest: nothing says where to resume; use --force")
    return read_manifest(output)


def _refuse_difference(output: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    was, now = ({key: manifest.get(key) for key in _SAME} for manifest in (found, asked))
    if found.get("complete") is not False:
        if found.get("truncated"):
            raise RefusedError(
                f"{output}: cut off, and finished as it was by apr repair-manifest: use --force"
            )
        recorded = [key for key in _SAME_IF_RECORDED if found.get(key) is not None]
        was |= {key: found[key] for key in recorded}
        now |= {key: asked[key] for key in recorded}
    else:
        if not isinstance(found.get("progress"), dict) or not isinstance(found.get("shards"), list):
            raise RefusedError(f"{output / MANIFEST}: does not say where to resume: use --force")
        was |= found["progress"].get("options", {})
        now |= asked["progress"]["options"]
    for key in was | now:
        if was.get(key) != now.get(key):
            raise RefusedError(
                f"{output}: cannot resume, {key} was {_short(was.get(key))} "
                f"and now is {_short(now.get(key))}: ask for the same, or use --force"
            )
    if found.get("complete") is not False:
        differences = check_manifest(found, list_shards(output))
        if differences:
            raise RefusedError(
                f"{output / MANIFEST}: disagrees with the files: {'; '.join(differences)}: use --force"
            )


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _clear(output: Path) -> None:
    """Remove the shards and the manifest of another encoding, the manifest first."""
    (output / MANIFEST).unlink(missing_ok=True)
    for path in output.glob("shard-*.bin"):
        path.unlink()

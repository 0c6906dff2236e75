"""`apr tokenize`: a vocabulary from a corpus, a corpus to token shards, a look at the text of shards."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.filesize import decimal
from tyro.conf import FlagCreatePairsOff as Flag

from apr.data.corpus_files import STDIN
from apr.data.encode import EncodeReport, Progress, encode_corpus, look_at
from apr.data.encode_options import EncodeOptions, prepare
from apr.data.manifest import read_manifest
from apr.duration import format_duration
from apr.errors import AprError, RefusedError, UsageError
from apr.options import Alias
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apr.data.corpus import Skipped
    from apr.data.shards import ShardDir
    from apr.data.tokenizers import LoadedTokenizer

# Lines of documents that were skipped; the rest is counted.
_SHOWN = 5
# Between lines of progress where there is no terminal.
_LINE_SECONDS = 30.0
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class Train:
    """Train a byte-level BPE vocabulary; the same corpus gives the same bytes.

    Example: apr tokenize train --corpus src --pattern '*.py' --vocab-size 8192 --output tokenizer
    """

    corpus: tuple[str, ...]
    """Text files, folders, JSON lines (.jsonl, .ndjson, .json; .gz, .zst), .parquet; - is standard input."""
    vocab_size: int
    """Tokens in all, <|endoftext|> among them."""
    output: Path
    """The directory to write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt into."""
    pattern: tuple[str, ...] = ()
    """Globs that a file below a directory has to match one of."""
    exclude: tuple[str, ...] = ()
    """Globs below each directory that are left out, such as 'test/*'."""
    content_field: str = "content"
    """The key or column of JSONL and parquet that holds the text."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Train, and say what was made."""
        from apr.data.corpus import Corpus
        from apr.data.train_tokenizer import train

        started = time.monotonic()
        corpus = Corpus(
            self.corpus,
            patterns=self.pattern,
            exclude=self.exclude,
            content_field=self.content_field,
            without=self.output,
        )
        with _bar("training") as bar:
            made = train(
                corpus, self.vocab_size, self.output, lambda read, total: bar(read, total, lambda _: "")
            )
        if made.vocab_size < self.vocab_size:
            print(f"note: {made.vocab_size} tokens are all that the corpus has merges for", file=sys.stderr)
        if self.json:
            found = {
                "output": str(made.output),
                "vocab_size": made.vocab_size,
                "documents": made.documents,
                "skipped_documents": made.skipped,
                "text_bytes": made.text_bytes,
                "seconds": round(time.monotonic() - started, 3),
            }
            print(json.dumps(found))
        else:
            print(
                f"{made.output}: {made.vocab_size} tokens from {counted(made.documents, 'document')}, "
                f"{decimal(made.text_bytes)} of text, in {time.monotonic() - started:.1f} s"
            )
        return 0


@dataclass(frozen=True)
class Encode(EncodeOptions):
    """Encode a corpus to token shards with a manifest; the same bytes whatever the workers.

    Example: apr tokenize encode --corpus src --pattern '*.py' --tokenizer model.apr --output shards
    """

    estimate_only: Annotated[bool, Flag] = False
    """Say how many tokens and shards it would be; write nothing."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Encode, and say what was made."""
        if self.estimate_only:
            return self._estimate()
        try:
            with _bar("encoding") as bar, _terminable():
                made = encode_corpus(self, lambda at: bar(at.read, at.total, _speed(at)))
        except (KeyboardInterrupt, SystemExit):
            kept = _kept(self.output, self.corpus)
            nothing = f"{self.output}: no shard was whole yet: run the same command again"
            print(kept or nothing, file=sys.stderr)
            raise
        except OSError:
            if kept := _kept(self.output, self.corpus):
                print(kept, file=sys.stderr)
            raise
        print(json.dumps(made.manifest) if self.json else _encoded(made, self.output))
        _print_notes(made.tokenizer.note, made.skipped, made.manifest.get("skipped_documents") or 0)
        return 0

    def _estimate(self) -> int:
        tokenizer, corpus = prepare(self)
        if corpus.nbytes is None:
            raise UsageError("standard input cannot be estimated: it could not be read again")
        found = look_at(self, tokenizer, corpus)
        tokens, documents = found.tokens or 0, found.documents_in_all or 0
        if self.eos_policy != "none":
            tokens += documents
        shards = -(-tokens // self.shard_tokens)
        if self.json:
            rows = {"tokens": tokens, "documents": documents, "shards": shards, "bytes": 4 * tokens}
            print(json.dumps({"estimate": True, **rows, "corpus_bytes": corpus.nbytes}))
        else:
            print(
                f"about {counted(tokens, 'token')} of {counted(documents, 'document')} "
                f"({decimal(corpus.nbytes)} in {counted(len(corpus.files), 'file')}): "
                f"{counted(shards, 'shard')}, {decimal(4 * tokens)}"
            )
        _print_notes(tokenizer.note, (), 0)
        return 0


@dataclass(frozen=True)
class Decode:
    """Print the text of shards.

    Example: apr tokenize decode shards --start 1000 --count 200
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """The shard directory."""
    tokenizer: Path | None = None
    """As `encode` takes it (default: the one the shards were made with, where the manifest says it is)."""
    start: int = 0
    """The first token, counted from the start of the first shard."""
    count: Annotated[int, Alias("--tokens")] = 256
    """How many tokens; fewer where the shards end."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print the text."""
        from apr.data.shards import ShardDir
        from apr.data.tokenizers import load_tokenizer

        shards = ShardDir(self.directory, unfinished=True)
        tokenizer = _tokenizer_of(shards) if self.tokenizer is None else load_tokenizer(self.tokenizer)
        if not 0 <= self.start < shards.total_tokens or self.count < 1:
            raise UsageError(
                f"--start {self.start} --count {self.count}: the shards hold tokens 0 to "
                f"{shards.total_tokens - 1}"
            )
        ids = shards.read(self.start, min(self.count, shards.total_tokens - self.start)).tolist()
        odd = next((place for place, id_ in enumerate(ids, self.start) if id_ >= tokenizer.vocab_size), None)
        if odd is not None:
            _beyond(shards, tokenizer, odd, ids[odd - self.start])
        text = "".join(
            tokenizer.decode(list(run)) if known else "".join(f"<id {id_}>" for id_ in run)
            for known, run in groupby(ids, lambda id_: id_ < tokenizer.vocab_size)
        )
        print(json.dumps({"start": self.start, "ids": ids, "text": text}) if self.json else text)
        return 0


def _beyond(shards: ShardDir, tokenizer: LoadedTokenizer, place: int, id_: int) -> None:
    """Say where the first id is that the vocabulary does not have.

    Raises:
        UsageError: it is not the vocabulary that the shards were made with.
    """
    starts = shards.starts()
    number = bisect_right(starts, place) - 1
    where = f"{shards.shards[number].path}: id {id_} at byte {4 * (place - starts[number])} (token {place})"
    if (made_with := shards.manifest.get("tokenizer_sha256")) not in (None, tokenizer.sha256):
        raise UsageError(
            f"{where} is beyond {tokenizer.source}, whose vocabulary ends at {tokenizer.vocab_size - 1}: "
            f"name the tokenizer they were made with (its tokenizer_sha256 is {made_with})"
        )
    print(f"note: {where} is beyond the vocabulary of {tokenizer.source}", file=sys.stderr)


def _tokenizer_of(shards: ShardDir) -> LoadedTokenizer:
    """The tokenizer that the manifest names, if it is still there and still the same."""
    from apr.data.tokenizers import load_tokenizer

    named, recorded = (shards.manifest.get(key) for key in ("tokenizer_dir", "tokenizer_sha256"))
    if not isinstance(named, str):
        raise UsageError(f"{shards.path}: its manifest names no tokenizer: name it with --tokenizer")
    if not Path(named).exists():
        raise UsageError(
            f"{named}: not there, and the tokenizer that {shards.path} was made with: "
            "name where it is with --tokenizer"
        )
    tokenizer = load_tokenizer(named)
    if recorded not in (None, tokenizer.sha256):
        raise RefusedError(
            f"{named}: not the tokenizer that {shards.path} was made with, its tokenizer_sha256 differs: "
            "name that one with --tokenizer"
        )
    return tokenizer


def _encoded(made: EncodeReport, output: Path) -> str:
    manifest = made.manifest
    what = (
        f"{output}: {counted(manifest['total_tokens'], 'token')} of "
        f"{counted(manifest['total_documents'] or 0, 'document')} in "
        f"{counted(manifest['shard_count'], 'shard')}"
    )
    if made.complete_before:
        return f"{what}, all there already"
    speed = made.text_bytes / 1e6 / max(made.seconds, 1e-9)
    return f"{what}, from {decimal(made.text_bytes)} of text in {made.seconds:.1f} s ({speed:.1f} MB/s)"


def _print_notes(note: str | None, skipped: tuple[Skipped, ...], count: int) -> None:
    if note is not None:
        print(f"note: {note}", file=sys.stderr)
    for item in skipped[:_SHOWN]:
        print(f"skipped: {item.name}: {item.reason}", file=sys.stderr)
    if count:
        print(f"{counted(count, 'document')} skipped in all", file=sys.stderr)


def _speed(at: Progress) -> Callable[[float], str]:
    """What has been done, and how fast in the seconds given."""

    def text(seconds: float) -> str:
        return (
            f"{counted(at.documents, 'document')}, {at.tokens / 1e6:,.1f} M tokens, "
            f"{counted(at.shards, 'shard')}, "
            f"{at.text / 1e6 / seconds:.1f} MB/s, {at.encoded / seconds:,.0f} tokens/s"
        )

    return text


def _kept(output: Path, corpus: tuple[str, ...]) -> str | None:
    """What an encoding that was cut off leaves, and how to go on; None where it is nothing."""
    try:
        manifest = read_manifest(output)
    except (OSError, AprError):
        return None
    shards, tokens = manifest.get("shard_count"), manifest.get("total_tokens")
    if manifest.get("complete") is not False or not shards:
        return None
    on = "standard input is not resumed, --force encodes anew" if STDIN in corpus else "--resume continues"
    return f"{output}: kept, {counted(shards, 'whole shard')} with {counted(tokens or 0, 'token')}: {on}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM ends the command as Ctrl-C does, with its own exit code."""

    def stop(*_: object) -> None:
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar(doing: str) -> Iterator[Callable[[int, int | None, Callable[[float], str]], None]]:
    """Progress with the time left: a bar on a terminal, elsewhere a line now and then.

    What it gives takes the bytes that are read, of how many, and what makes a text of the seconds passed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn(doing),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    ]
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    first: int | None = None
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        task = bar.add_task("", total=None)

        def update(read: int, total: int | None, text: Callable[[float], str]) -> None:
            nonlocal first, said
            now = time.monotonic()
            # What a resumed run passed over took no time.
            first = read if first is None else first
            left = (
                ""
                if not total or read == first
                else f", {format_duration((total - read) * (now - started) / (read - first))} left"
            )
            if terminal:
                bar.update(task, completed=read, total=total, description=text(now - started) + left)
            elif now - said >= _LINE_SECONDS:
                said = now
                share = f"{read / total:.1%}, " if total else ""
                print(f"{doing}: {share}{text(now - started)}{left}", file=sys.stderr, flush=True)

        yield update


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Encode, tyro.conf.subcommand("encode-corpus")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
)

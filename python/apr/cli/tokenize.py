"""`apr tokenize`: train a vocabulary, encode a corpus, join its parts, import token files, print shards."""

from __future__ import annotations

import json
import signal
import sys
import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.filesize import decimal
from tyro.conf import FlagCreatePairsOff as Flag

from apr.data.corpus_stream import STDIN
from apr.data.encode import EncodeReport, encode_corpus, estimate_corpus
from apr.data.encode_options import EncodeOptions, prepare
from apr.data.encoding import Progress
from apr.data.identity import MANIFEST_KEY
from apr.data.listing import ID_SIZE
from apr.data.manifest import read_manifest
from apr.data.same_tokenizer import check_same_tokenizer, facts_of_shards, facts_of_tokenizer, unknown_note
from apr.data.token_import import ImportOptions, ImportSettings, import_tokens
from apr.duration import format_duration
from apr.errors import AprError, RefusedError, UsageError
from apr.options import Alias, Metavar, Unset
from apr.plurals import counted
from apr.signals import WARNINGS, handled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apr.data.documents import Skipped
    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.shards import ShardDir

# Skipped documents that are named; all are counted.
_MAX_NAMED = 5
# Seconds between lines of progress that is not shown on a terminal.
_LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Train:
    """Train a byte-level BPE vocabulary. The same corpus gives the same bytes.

    Example: apr tokenize train --corpus src --pattern '*.py' --vocab-size 8192 --output tokenizer
    """

    corpus: Annotated[tuple[str, ...], Metavar("PATH [PATH ...]")]
    """Text to train on: text files, directories, JSON lines (.jsonl, .ndjson or .json, also with .gz or .zst)
    or Parquet files (.parquet). The path - is standard input."""
    vocab_size: int
    """Number of tokens, including <|endoftext|>."""
    output: Path
    """Directory for tokenizer.json, tokenizer_config.json, vocab.json and merges.txt."""
    pattern: Annotated[tuple[str, ...], Metavar("GLOB [GLOB ...]"), Unset("all files")] = ()
    """Use only the files of a directory that match one of these globs, such as '*.py'."""
    exclude: Annotated[tuple[str, ...], Metavar("GLOB [GLOB ...]"), Unset("none")] = ()
    """Leave out the files of a directory that match one of these globs, such as 'test/*'."""
    hidden: Annotated[bool, Flag] = False
    """Include hidden files and folders of a directory (.git, .env), which are otherwise left out and counted.
    """
    content_field: Annotated[str, Metavar("NAME")] = "content"
    """JSON key or Parquet column that holds the text."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Train, print a summary, and return the exit code."""
        from apr.data.corpus import Corpus
        from apr.data.train_tokenizer import train

        started = time.monotonic()
        corpus = Corpus(
            self.corpus,
            patterns=self.pattern,
            exclude=self.exclude,
            hidden=self.hidden,
            content_field=self.content_field,
            without=self.output,
        )
        with _progress_bar("training") as update:
            report = train(
                corpus, self.vocab_size, self.output, lambda read, total: update(read, total, lambda _: "")
            )
        seconds = time.monotonic() - started
        _print_hidden(corpus.hidden)
        if report.vocab_size < self.vocab_size:
            print(
                f"note: the corpus is too small for {counted(self.vocab_size, 'token')}; the tokenizer has "
                f"{report.vocab_size}",
                file=sys.stderr,
            )
        if self.json:
            row = {
                "output": str(report.output),
                "vocab_size": report.vocab_size,
                "documents": report.documents,
                "skipped_documents": report.skipped,
                "text_bytes": report.text_bytes,
                "seconds": round(seconds, 3),
            }
            print(json.dumps(row))
        else:
            print(
                f"{report.output}: {counted(report.vocab_size, 'token')} from "
                f"{counted(report.documents, 'document')}, {decimal(report.text_bytes)} of text, "
                f"in {seconds:.1f} s"
            )
        return 0


@dataclass(frozen=True)
class Encode(EncodeOptions):
    """Encode a corpus to token shards with a manifest. The same corpus gives the same bytes.

    Example: apr tokenize encode --corpus src --pattern '*.py' --tokenizer model.apr --output shards
    """

    estimate_only: Annotated[bool, Flag] = False
    """Estimate the number of tokens and shards; write nothing."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Encode, print a summary, and return the exit code."""
        if self.estimate_only:
            return self._estimate()
        try:
            with _progress_bar("encoding") as update, _exit_on_signals():
                report = encode_corpus(
                    self,
                    lambda at: update(at.read, at.total, lambda seconds: _progress_text(at, seconds)),
                )
        except (KeyboardInterrupt, SystemExit):
            kept = _kept_shards(self.output, self.corpus)
            print(
                kept or f"{self.output}: no shard was complete; run the same command again", file=sys.stderr
            )
            raise
        except OSError:
            if kept := _kept_shards(self.output, self.corpus):
                print(kept, file=sys.stderr)
            raise
        print(json.dumps(report.manifest) if self.json else _summary(report, self.output))
        _print_notes(report.tokenizer.note, report.skipped, report.manifest.get("skipped_documents") or 0)
        _print_hidden(report.hidden)
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
        return 0

    def _estimate(self) -> int:
        tokenizer, corpus = prepare(self)
        if corpus.nbytes is None:
            raise UsageError("--estimate-only cannot read standard input, which can be read only once")
        estimate = estimate_corpus(self, tokenizer, corpus)
        tokens, documents, shards = estimate.tokens, estimate.documents, estimate.shards
        if self.json:
            row = {"tokens": tokens, "documents": documents, "shards": shards, "bytes": ID_SIZE * tokens}
            print(json.dumps({"estimate": not estimate.counted, **row, "corpus_bytes": corpus.nbytes}))
        else:
            print(
                f"{'' if estimate.counted else 'about '}{counted(tokens, 'token')} from "
                f"{counted(documents, 'document')} "
                f"({decimal(corpus.nbytes)} in {counted(len(corpus.files), 'file')}): "
                f"{counted(shards, 'shard')}, {decimal(ID_SIZE * tokens)}"
            )
        _print_notes(tokenizer.note, (), 0)
        _print_hidden(corpus.hidden)
        return 0


@dataclass(frozen=True)
class Merge:
    """Join the parts of an encoding: the same shards as if one run had encoded the whole corpus.

    Example: apr tokenize merge part-1 part-2 part-3 --output shards
    """

    parts: Annotated[tuple[Path, ...], tyro.conf.Positional, Metavar("PART [PART ...]")]
    """The directories that `apr tokenize encode --part I/N` wrote, all of them, in any order."""
    output: Path
    """Directory for the shards."""
    resume: Annotated[bool, Flag] = False
    """Resume a merge that was interrupted."""
    force: Annotated[bool, Flag] = False
    """Replace shards that are already in the output directory."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Merge, print a summary, and return the exit code."""
        from apr.data.merge import merge_parts

        with _progress_bar("merging") as update, _exit_on_signals():
            report = merge_parts(
                self.parts,
                self.output,
                resume=self.resume,
                force=self.force,
                on_progress=lambda written, total: update(written, total, lambda _: ""),
            )
        manifest = report.manifest
        if self.json:
            print(json.dumps(manifest))
            return 0
        contents = (
            f"{self.output}: {counted(manifest['total_tokens'], 'token')} from "
            f"{counted(manifest.get('total_documents') or 0, 'document')} in "
            f"{counted(manifest['shard_count'], 'shard')}, from {counted(len(self.parts), 'part')}"
        )
        if report.complete_before:
            print(f"{contents}, already complete")
        else:
            speed = report.nbytes / 1e9 / max(report.seconds, 1e-9)
            print(f"{contents}, in {report.seconds:.1f} s ({speed:.2f} GB/s)")
        return 0


@dataclass(frozen=True)
class Import(ImportSettings):
    """Import token files of nanoGPT, llm.c, datatrove, Megatron, OLMo and Dolma into shards.

    Example: apr tokenize import corpus.ds shards --tokenizer tokenizer.json
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, Metavar("SRC [SRC ...] DIR")]
    """Token files (.bin, .ds, .npy, with their indices beside them) or directories of them, and the directory
    for the shards."""
    output: Annotated[Path | None, Unset("the last path")] = None
    """Directory for the shards."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Import, print a summary, and return the exit code."""
        from apr.data.token_files import FORMATS

        paths = self.paths if self.output is None else (*self.paths, self.output)
        if len(paths) < 2:
            raise UsageError(f"{paths[0]}: name the directory for the shards after it", path=paths[0])
        shared = {field.name: getattr(self, field.name) for field in fields(ImportSettings)}
        options = ImportOptions(sources=paths[:-1], output=paths[-1], **shared)
        try:
            with _progress_bar("importing") as update, _exit_on_signals():
                report = import_tokens(options, lambda read, total: update(read, total, lambda _: ""))
        except (KeyboardInterrupt, SystemExit, OSError):
            if kept := _kept_shards(options.output, ()):
                print(kept, file=sys.stderr)
            raise
        manifest = report.manifest
        if self.json:
            print(json.dumps(manifest))
        else:
            documents = manifest.get("total_documents")
            contents = f"{options.output}: {counted(manifest['total_tokens'], 'token')}"
            if documents is not None:
                contents += f" from {counted(documents, 'document')}"
            contents += f" in {counted(manifest['shard_count'], 'shard')}"
            files = f"{counted(len(manifest['input_files']), 'file')} of {FORMATS[manifest['input_format']]}"
            how = "already complete" if report.complete_before else f"in {report.seconds:.1f} s"
            print(f"{contents}, imported from {files}, {how}")
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
        return 0


@dataclass(frozen=True)
class Decode:
    """Print the text of shards.

    Example: apr tokenize decode shards --start 1000 --count 200
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """The shard directory."""
    tokenizer: Annotated[Path | None, Unset("the one in the manifest")] = None
    """Tokenizer: a tokenizer.json, a directory that holds one or vocab.json and merges.txt, or an .apr or
    .gguf file."""
    start: int = 0
    """Position of the first token to print, counted from the start of the first shard."""
    count: Annotated[int, Alias("--tokens")] = 256
    """Number of tokens to print, or fewer if the shards end first."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print the text, and return the exit code."""
        from apr.data.shards import ShardDir
        from apr.data.tokenizers import load_tokenizer

        # Also what a killed encoding left, to see how far it got.
        shards = ShardDir(self.directory, unfinished=True)
        if self.tokenizer is None:
            tokenizer = _recorded_tokenizer(shards)
        else:
            tokenizer = load_tokenizer(self.tokenizer)
            facts = (facts_of_shards(shards.path, shards.manifest), facts_of_tokenizer(tokenizer))
            check_same_tokenizer(*facts)
            if (unknown := unknown_note(facts)) is not None:
                print(f"note: {unknown}", file=sys.stderr)
        if not 0 <= self.start < shards.total_tokens or self.count < 1:
            raise UsageError(
                f"--start {self.start} --count {self.count} is out of range; the shards contain tokens 0 to "
                f"{shards.total_tokens - 1}"
            )
        ids = shards.read(self.start, min(self.count, shards.total_tokens - self.start)).tolist()
        for position, id_ in enumerate(ids, self.start):
            if id_ >= tokenizer.vocab_size:
                _report_unknown_id(shards, tokenizer, position, id_)
                break
        pieces = []
        for is_known, group in groupby(ids, lambda id_: id_ < tokenizer.vocab_size):
            run = list(group)
            pieces.append(tokenizer.decode(run) if is_known else "".join(f"<id {id_}>" for id_ in run))
        text = "".join(pieces)
        print(json.dumps({"start": self.start, "ids": ids, "text": text}) if self.json else text)
        return 0


def _recorded_tokenizer(shards: ShardDir) -> LoadedTokenizer:
    """Load the tokenizer that the manifest names, if it is still there and unchanged."""
    from apr.data.tokenizers import load_tokenizer

    path, sha256 = shards.manifest.get("tokenizer_dir"), shards.manifest.get("tokenizer_sha256")
    if not isinstance(path, str):
        raise UsageError(
            f"{shards.path}: the manifest does not name a tokenizer; pass one with --tokenizer",
            path=shards.path,
        )
    if not Path(path).exists():
        raise UsageError(
            f"{path}: the tokenizer of {shards.path} no longer exists; pass its new path with --tokenizer",
            path=path,
        )
    tokenizer = load_tokenizer(path)
    identity = shards.manifest.get(MANIFEST_KEY)
    if sha256 not in (None, tokenizer.sha256) and identity != tokenizer.identity:
        raise RefusedError(
            f"{path}: the file has changed since {shards.path} was encoded (tokenizer_sha256 differs); "
            "pass the original one with --tokenizer",
            path=path,
        )
    return tokenizer


def _report_unknown_id(shards: ShardDir, tokenizer: LoadedTokenizer, position: int, id_: int) -> None:
    """Report the first id that the vocabulary does not have.

    Raises:
        UsageError: the shards were encoded with another tokenizer.
    """
    starts = shards.starts()
    number = bisect_right(starts, position) - 1
    byte = ID_SIZE * (position - starts[number])
    place = f"{shards.shards[number].path}: id {id_} at byte {byte} (token {position})"
    encoded_with = shards.manifest.get("tokenizer_sha256")
    if encoded_with not in (None, tokenizer.sha256):
        raise UsageError(
            f"{place} is not in the vocabulary of {tokenizer.source}, which ends at "
            f"{tokenizer.vocab_size - 1}; pass the tokenizer whose SHA-256 is {encoded_with}"
        )
    print(f"note: {place} is not in the vocabulary of {tokenizer.source}", file=sys.stderr)


def _summary(report: EncodeReport, output: Path) -> str:
    manifest = report.manifest
    contents = (
        f"{output}: {counted(manifest['total_tokens'], 'token')} from "
        f"{counted(manifest.get('total_documents') or 0, 'document')} in "
        f"{counted(manifest['shard_count'], 'shard')}"
    )
    if "part" in manifest:
        contents = f"{contents} (part {manifest['part']})"
    if report.complete_before:
        return f"{contents}, already complete"
    speed = report.text_bytes / 1e6 / max(report.seconds, 1e-9)
    rate = f"{decimal(report.text_bytes)} of text in {report.seconds:.1f} s ({speed:.1f} MB/s)"
    in_all = manifest.get("text_bytes")
    if in_all == report.text_bytes:
        return f"{contents}, from {rate}"
    # A resumed encoding: the totals are those of the whole, the rate is that of what was encoded now.
    text = "" if in_all is None else f", from {decimal(in_all)} of text"
    return f"{contents}{text}; this run encoded {rate}"


def _print_notes(note: str | None, skipped: tuple[Skipped, ...], count: int) -> None:
    if note is not None:
        print(f"note: {note}", file=sys.stderr)
    for item in skipped[:_MAX_NAMED]:
        print(f"skipped: {item.name}: {item.reason}", file=sys.stderr)
    if count:
        print(f"{counted(count, 'document')} skipped in total", file=sys.stderr)


def _print_hidden(hidden: Sequence[str]) -> None:
    if hidden:
        kinds = "1 hidden file or folder" if len(hidden) == 1 else f"{len(hidden)} hidden files and folders"
        print(f"{kinds} left out, such as {hidden[0]}; pass --hidden to include them", file=sys.stderr)


def _progress_text(progress: Progress, seconds: float) -> str:
    return (
        f"{counted(progress.documents, 'document')}, {progress.tokens / 1e6:,.1f} M tokens, "
        f"{counted(progress.shards, 'shard')}, "
        f"{progress.text / 1e6 / seconds:.1f} MB/s, {progress.encoded / seconds:,.0f} tokens/s"
    )


def _kept_shards(output: Path, corpus: tuple[str, ...]) -> str | None:
    """Return what an encoding that was cut off left, and how to continue; None if it left nothing."""
    try:
        manifest = read_manifest(output)
    except (OSError, AprError):
        return None
    shards, tokens = manifest.get("shard_count"), manifest.get("total_tokens")
    if manifest.get("complete") is not False or not shards:
        return None
    how = "use --resume to continue"
    if STDIN in corpus:
        how = "standard input cannot be resumed; use --force to start over"
    return f"{output}: kept {counted(shards, 'complete shard')} with {counted(tokens or 0, 'token')}; {how}"


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and the warnings of schedulers end the command as Ctrl-C does, with 128 + their number."""
    stopping = False

    def stop(number: int, _: object) -> None:
        nonlocal stopping
        # Warnings are repeated. Another one must not end the writing of shards that the first one began.
        if stopping and number in WARNINGS:
            return
        stopping = True
        # An exception, so that the encoder cleans up and counts every closed shard.
        raise SystemExit(128 + number)

    with handled((signal.SIGTERM, *WARNINGS), stop):
        yield


@contextmanager
def _progress_bar(action: str) -> Iterator[Callable[[int, int | None, Callable[[float], str]], None]]:
    """Show progress with the time left: a bar on a terminal, elsewhere a line from time to time.

    Yields a function to call with the bytes read, the total bytes or None, and a function that returns the
    text for the seconds passed.
    """
    # Imported here: refusals and --estimate-only do not need them.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn(action),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    ]
    is_terminal = sys.stderr.isatty()
    started = last_line = time.monotonic()
    first_read: int | None = None
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("", total=None)

        def update(read: int, total: int | None, text: Callable[[float], str]) -> None:
            nonlocal first_read, last_line
            now = time.monotonic()
            seconds = now - started
            # A resumed run skips most of the corpus at once: only what it reads itself tells its speed.
            if first_read is None:
                first_read = read
            left = ""
            if total and read > first_read:
                left = f", {format_duration((total - read) * seconds / (read - first_read))} left"
            if is_terminal:
                bar.update(task, completed=read, total=total, description=text(seconds) + left)
            elif now - last_line >= _LINE_SECONDS:
                last_line = now
                share = f"{read / total:.1%}, " if total else ""
                print(f"{action}: {share}{text(seconds)}{left}", file=sys.stderr, flush=True)

        yield update


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    # The same command under its name in other tools of the ecosystem.
    | Annotated[Encode, tyro.conf.subcommand("encode-corpus")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
)

"""A corpus to token shards: the same bytes for any number of workers, killed and resumed or not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from apr.data.encode_options import EncodeOptions, prepare
from apr.data.encoding import Encoding, Progress
from apr.data.manifest import MANIFEST, Manifest, ShardRow, write_manifest
from apr.data.output_dir import (
    check_corpus_unchanged,
    check_kept_shards,
    check_same_encoding,
    clear_output,
    lock_output,
    manifest_to_resume,
)
from apr.data.sample import check_is_text
from apr.data.shard_writer import CorpusPosition, ShardWriter, name_digits
from apr.data.shards import ShardDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.data.corpus import Corpus
    from apr.data.documents import Skipped
    from apr.data.estimate import Estimate
    from apr.data.loaded_tokenizer import LoadedTokenizer


@dataclass(frozen=True)
class EncodeReport:
    """The result of an encoding."""

    manifest: Manifest
    tokenizer: LoadedTokenizer
    text_bytes: int
    """Bytes of text that this run encoded; 0 if nothing was left to do."""
    seconds: float
    skipped: tuple[Skipped, ...]
    """The first documents that were skipped. The manifest counts all of them."""
    hidden: tuple[str, ...] = ()
    """Hidden files and folders of the corpus that were left out."""
    notes: tuple[str, ...] = ()
    """What a user should know about the tokenizer and this text."""
    complete_before: bool = False
    """Whether nothing was left to do."""


def estimate_corpus(options: EncodeOptions, tokenizer: LoadedTokenizer, corpus: Corpus) -> Estimate:
    """Return what the encoding of a corpus will have. Nothing is written.

    Raises:
        FormatError, OSError: a file of the corpus cannot be read.
        RefusedError: no row of a file has the text field; with `strict`, a document is not valid.
    """
    return Encoding(options, tokenizer, corpus).estimate()


def encode_corpus(
    options: EncodeOptions, on_progress: Callable[[Progress], None] = lambda _: None
) -> EncodeReport:
    """Encode a corpus into a directory of shards with a manifest.

    If a signal raises an exception (KeyboardInterrupt), the shards that are closed by then are written with
    their manifest before it leaves this function; `resume` continues from there.

    Args:
        options: what to encode, with what, and where to.
        on_progress: called after each batch.

    Raises:
        UsageError: the end-of-text token is unknown, or standard input is to be resumed.
        RefusedError: the directory already contains shards, or another encoding writes there; the tokenizer
            loses text; with `strict`, a document is not valid; a resumed run differs from the one it
            continues; the corpus changed meanwhile.
        FormatError: a corpus file or the tokenizer is damaged.
        OSError: reading or writing failed; `resume` continues.
    """
    started = time.monotonic()
    tokenizer, corpus = prepare(options)
    # Held from here to the end: what is decided about the directory must still be true when shards are
    # written.
    with lock_output(options.output):
        encoding = Encoding(options, tokenizer, corpus, started)
        earlier = manifest_to_resume(options.output, resume=options.resume, force=options.force)
        if earlier is not None:
            check_same_encoding(options.output, earlier, encoding.manifest([], CorpusPosition()), corpus)
            # Manifests of other producers lack the key: they are written at a clean exit only.
            if earlier.get("complete") is not False:
                if earlier.get("shards") != []:
                    ShardDir(options.output, unfinished=True).scan(keep=False)
                return _report(encoding, cast("Manifest", earlier), complete_before=True)
            check_kept_shards(options.output, earlier["shards"])
            encoding.resume(earlier)
        manifest = _write(encoding, earlier, on_progress)
    return _report(encoding, manifest)


def _write(
    encoding: Encoding, earlier: dict[str, Any] | None, on_progress: Callable[[Progress], None]
) -> Manifest:
    """Write the shards that an earlier run did not write, and return the complete manifest."""
    options = encoding.options
    rows: list[ShardRow] = [] if earlier is None else earlier["shards"]
    # The tokenizer is tried on the corpus before anything is removed or written.
    sample = encoding.sample(encoding.position.place)
    for document in sample.documents:
        check_is_text(document.name, document.text.count("\0"), len(document.text))
    encoding.check_tokenizer(sample)
    encoding.name_digits = name_digits(sample.tokens, options.shard_tokens)
    # A resumed encoding keeps the width of its names: one directory with two widths is refused by every
    # reader.
    if rows:
        encoding.name_digits = len(rows[0]["name"]) - len("shard-.bin")
    clear_output(options.output, keep=earlier is not None)
    if earlier is None:
        # Before the first shard, so that a directory that is left by a kill says what it is, and the same
        # command then starts over without a flag.
        write_manifest(options.output, encoding.manifest([], encoding.position))
    with ShardWriter(options.output, rows, encoding.name_digits, encoding.manifest) as writer:
        encoding.run(sample.batches, writer, on_progress)
    if not writer.rows and encoding.part is None:
        # The manifest of no shards would make the next call refuse a directory in which there is nothing to
        # lose.
        (options.output / MANIFEST).unlink()
        raise encoding.no_text_error()
    # Before `complete` becomes true: if a file changed meanwhile, nothing trains on the mixture of both.
    check_corpus_unchanged(options.output, encoding.corpus, encoding.skipped_files)
    manifest = encoding.manifest(writer.rows, encoding.position, complete=True)
    write_manifest(options.output, manifest)
    return manifest


def _report(encoding: Encoding, manifest: Manifest, *, complete_before: bool = False) -> EncodeReport:
    return EncodeReport(
        manifest=manifest,
        tokenizer=encoding.tokenizer,
        text_bytes=encoding.text_bytes,
        seconds=time.monotonic() - encoding.started,
        skipped=tuple(encoding.skipped),
        hidden=tuple(encoding.corpus.hidden),
        notes=tuple(encoding.notes),
        complete_before=complete_before,
    )

"""The options of an encoding, and the tokenizer and corpus that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (options are read from the annotations at run time)
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from apr.data.corpus import Corpus
from apr.data.corpus_part import parse_part
from apr.data.sample import Normalization  # noqa: TC001 (the same)
from apr.data.tokenizers import load_tokenizer
from apr.errors import OptionsError, UsageError
from apr.options import Alias, Metavar, Unset, check_options

if TYPE_CHECKING:
    from apr.data.loaded_tokenizer import LoadedTokenizer

EosPolicy = Literal["none", "between", "after"]


@dataclass(frozen=True)
class EncodeOptions:
    """Options of an encoding; the flags of `apr tokenize encode` have the same names.

    Raises:
        OptionsError: values are out of range or contradict each other; it is a UsageError.
    """

    corpus: Annotated[tuple[str, ...], Metavar("PATH [PATH ...]")]
    """Text to encode: text files, directories, JSON lines (.jsonl, .ndjson or .json, also with .gz or .zst)
    or Parquet files (.parquet). The path - is standard input."""
    tokenizer: Path
    """Tokenizer: a tokenizer.json, a directory that holds one or vocab.json and merges.txt, or an .apr or
    .gguf file."""
    output: Path
    """Directory for the shards."""
    pattern: Annotated[tuple[str, ...], Metavar("GLOB [GLOB ...]"), Unset("all files")] = ()
    """Encode only the files of a directory that match one of these globs, such as '*.py'."""
    exclude: Annotated[tuple[str, ...], Metavar("GLOB [GLOB ...]"), Unset("none")] = ()
    """Leave out the files of a directory that match one of these globs, such as 'test/*'."""
    hidden: bool = False
    """Include hidden files and folders of a directory (.git, .env), which are otherwise left out and counted.
    """
    content_field: Annotated[str, Metavar("NAME")] = "content"
    """JSON key or Parquet column that holds the text."""
    eos_policy: EosPolicy = "between"
    """Where end-of-text tokens are inserted: between two documents, after each one, or nowhere (none)."""
    eos_token: Annotated[str | None, Metavar("TOKEN"), Unset("the tokenizer's own")] = None
    """End-of-text token."""
    normalization: Normalization = "none"
    """Unicode normalization form that is applied to the text."""
    shard_tokens: Annotated[int, Ge(1)] = 10_000_000
    """Shard size in tokens. A shard ends after the document that reaches this size."""
    part: Annotated[str | None, Metavar("I/N"), Unset("the whole corpus")] = None
    """Encode only part I of N, for encoding on several machines. The parts have about the same number of
    bytes; join them with `apr tokenize merge`."""
    workers: Annotated[int | None, Ge(1), Alias("--num-workers"), Unset("one per CPU core")] = None
    """Number of threads. The shards are the same for any number."""
    strict: bool = False
    """Stop with an error if a document is not valid UTF-8 or lacks the text field, instead of skipping it."""
    allow_text_loss: bool = False
    """Encode with a tokenizer that loses some of the text. The manifest records what a sample lost."""
    resume: bool = False
    """Resume an encoding that was interrupted. Standard input cannot be resumed."""
    force: bool = False
    """Replace shards that are already in the output directory."""

    def __post_init__(self) -> None:
        problems = check_options(self)
        if self.resume and self.force:
            problems.append(UsageError("--resume cannot be used with --force; resume, or start over"))
        if self.part is not None:
            try:
                parse_part(self.part)
            except UsageError as error:
                problems.append(error)
        if problems:
            raise OptionsError(problems)


def prepare(options: EncodeOptions) -> tuple[LoadedTokenizer, Corpus]:
    """Return the tokenizer and the corpus of an encoding.

    Raises:
        AprError, OSError: the tokenizer or a file of the corpus cannot be read.
        UsageError: the end-of-text token is unknown, or standard input is to be resumed.
    """
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    if tokenizer.eos_id is None and options.eos_policy != "none":
        raise UsageError(
            f"{options.tokenizer}: no end-of-text token is configured; name it with --eos-token, or use "
            "--eos-policy none",
            path=options.tokenizer,
        )
    corpus = Corpus(
        options.corpus,
        patterns=options.pattern,
        exclude=options.exclude,
        hidden=options.hidden,
        content_field=options.content_field,
        without=options.output,
    )
    if options.resume and corpus.nbytes is None:
        raise UsageError(
            "--resume cannot be used with standard input, because it may be other text than before; use "
            "--force to start over, or encode from a file"
        )
    return tokenizer, corpus

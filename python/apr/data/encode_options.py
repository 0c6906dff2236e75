"""What an encoding is asked for, and the tokenizer and corpus that it then has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (the command line is made from the annotations)
from typing import Annotated, Literal

import tyro

from apr.data.corpus import Corpus
from apr.data.sample import Normalization  # noqa: TC001 (likewise)
from apr.data.tokenizers import LoadedTokenizer, load_tokenizer
from apr.errors import UsageError

EosPolicy = Literal["none", "between", "after"]


@dataclass(frozen=True)
class EncodeOptions:
    """What to encode, with what, and where to; the flags of `apr tokenize encode` have the same names."""

    corpus: tuple[str, ...]
    """Text files, folders, JSON lines (.jsonl, .ndjson, .json; .gz, .zst), .parquet; - is standard input."""
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
    """Continue an encoding that was cut off; not one of standard input, which cannot be compared."""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the shards that are already there."""


def prepare(options: EncodeOptions) -> tuple[LoadedTokenizer, Corpus]:
    """The tokenizer and the corpus of an encoding.

    Raises:
        UsageError: options that contradict themselves; no known end of text; standard input to be resumed.
    """
    if options.resume and options.force:
        raise UsageError("--resume keeps what --force replaces: choose one")
    for flag, value in (("--shard-tokens", options.shard_tokens), ("--workers", options.workers)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: at least 1 is needed")
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
    if options.resume and corpus.nbytes is None:
        raise UsageError(
            "--resume with standard input: it cannot be told from another input: "
            "encode it anew with --force, or put it into a file and name that"
        )
    return tokenizer, corpus

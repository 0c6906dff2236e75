"""Training of a byte-level BPE vocabulary: the same corpus gives the same bytes."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.data.documents import Skipped
from apr.data.loaded_tokenizer import END_OF_TEXT
from apr.data.sample import check_is_text
from apr.errors import RefusedError, UsageError
from apr.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from apr.data.corpus import Corpus

# Every byte, and <|endoftext|>.
MIN_VOCAB_SIZE = 256 + 1
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class TrainReport:
    """The result of a training."""

    output: Path
    vocab_size: int
    """Number of tokens; smaller than requested if the corpus has no more merges."""
    documents: int
    text_bytes: int
    skipped: int


def train(
    corpus: Corpus,
    vocab_size: int,
    output: Path,
    on_progress: Callable[[int, int | None], None] = lambda *_: None,
) -> TrainReport:
    """Train a byte-level BPE tokenizer and write its four files.

    Args:
        corpus: the documents.
        vocab_size: number of tokens: 256 bytes, `<|endoftext|>` (id 0), and merges.
        output: the directory; it must not contain a tokenizer yet.
        on_progress: called with (bytes read of the corpus files, bytes of all of them or None).

    Raises:
        UsageError: `vocab_size` is too small for all bytes.
        NotADirectoryError: `output` is a file.
        RefusedError: the directory already contains a tokenizer, no row of a file has the text field, or the
            corpus has no text.
        FormatError, OSError: a file of the corpus cannot be read, or writing failed.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"--vocab-size {vocab_size} is too small; use at least {MIN_VOCAB_SIZE}, for all bytes and "
            f"{END_OF_TEXT}"
        )
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file has this name; use another directory", str(output))
    for name in FILES:
        # Refused before training, which takes longer than this check.
        if (output / name).exists():
            raise RefusedError(f"{output / name}: already exists; use another --output", path=output / name)
    corpus.check_fields()
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        # Special tokens come first, so that the end of text has id 0 whatever the corpus is.
        special_tokens=[AddedToken(END_OF_TEXT, normalized=False, special=True)],
        # All bytes are tokens, also those that the corpus does not have: no text is unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,  # the package would draw bars of its own
    )
    documents = text_bytes = characters = nuls = skipped = 0
    first_skipped: Skipped | None = None

    def texts() -> Iterator[str]:
        nonlocal documents, text_bytes, characters, nuls, skipped, first_skipped
        for read, item in corpus.items():
            if isinstance(item, Skipped):
                skipped += item.count
                first_skipped = first_skipped or item
                continue
            documents += 1
            text_bytes += len(item.text.encode())
            characters += len(item.text)
            nuls += item.text.count("\0")
            on_progress(read, corpus.nbytes)
            yield item.text

    tokenizer.train_from_iterator(texts(), trainer)
    if not text_bytes:
        first = ""
        if first_skipped:
            first = f" ({first_skipped.name}: {first_skipped.reason}){first_skipped.hint}"
        raise RefusedError(f"{', '.join(corpus.roots)}: no text to train on{first}")
    check_is_text(", ".join(corpus.roots), nuls, characters)
    _write_files(tokenizer.to_str(pretty=True), output)
    return TrainReport(output, tokenizer.get_vocab_size(), documents, text_bytes, skipped)


def _write_files(tokenizer_json: str, output: Path) -> None:
    model = json.loads(tokenizer_json)["model"]
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    # Only now, so that a corpus without text leaves no directory behind.
    output.mkdir(parents=True, exist_ok=True)
    # tokenizer.json last: readers look for it first, and must not find it without the others.
    contents = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": f"#version: 0.2\n{merges}",
        "tokenizer_config.json": json.dumps(config, indent=2),
        "tokenizer.json": tokenizer_json,
    }
    for name, content in contents.items():
        write_atomically(output / name, content.encode())

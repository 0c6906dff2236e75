"""A byte-level BPE vocabulary from a corpus: the same bytes for the same corpus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.data.corpus import Corpus, Skipped
from apr.data.tokenizers import END_OF_TEXT
from apr.errors import RefusedError, UsageError
from apr.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Every byte, and the end of text.
MIN_VOCAB_SIZE = 256 + 1
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    output: Path
    vocab_size: int
    """Tokens, the end of text among them: fewer than asked for where the corpus has no more merges."""
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
        vocab_size: tokens in all: 256 bytes, `<|endoftext|>` (id 0), and merges.
        output: the directory; it must not hold a tokenizer yet.
        on_progress: called with the bytes of corpus files that are read, and of all of them.

    Raises:
        UsageError: fewer tokens than bytes need.
        RefusedError: a tokenizer is already there, or the corpus has no text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(f"--vocab-size {vocab_size}: at least {MIN_VOCAB_SIZE}, each byte and {END_OF_TEXT}")
    there = [name for name in FILES if (output / name).exists()]
    if there:
        raise RefusedError(f"{output / there[0]}: already there: name another --output")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(END_OF_TEXT, normalized=False, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    count = _Count()
    tokenizer.train_from_iterator(count.texts(corpus, on_progress), trainer)
    if not count.text_bytes:
        raise RefusedError(f"{', '.join(corpus.roots)}: no text in it, nothing to train on")
    _write(tokenizer.to_str(pretty=True), output)
    return TrainReport(
        output, tokenizer.get_vocab_size(), count.documents, count.text_bytes, skipped=count.skipped
    )


@dataclass
class _Count:
    documents: int = 0
    text_bytes: int = 0
    skipped: int = 0

    def texts(self, corpus: Corpus, on_progress: Callable[[int, int | None], None]) -> Iterator[str]:
        for position, item in corpus.items():
            if isinstance(item, Skipped):
                self.skipped += item.count
                continue
            self.documents += 1
            self.text_bytes += len(item.text.encode())
            on_progress(position, corpus.nbytes)
            yield item.text


def _write(tokenizer_json: str, output: Path) -> None:
    model = json.loads(tokenizer_json)["model"]
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    output.mkdir(parents=True, exist_ok=True)
    # tokenizer.json last: it is the one that readers look for.
    contents = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": f"#version: 0.2\n{merges}",
        "tokenizer_config.json": json.dumps(config, indent=2),
        "tokenizer.json": tokenizer_json,
    }
    for name, content in contents.items():
        write_atomically(output / name, content.encode())

"""Compare the encoder's ids with those of the tokenizers package on a gigabyte of mixed text.

    nice -n 19 python benches/exact.py TOKENIZER.json LOG ROOT [ROOT …] [--megabytes N]

Text: 20 MB of random Unicode scalars, a part of them between ASCII characters, and then all text files below
the roots, each content once. It is compared in pieces of 10 MB, and each has a line in LOG: started again,
the program resumes after the last one. The exit code is 1 if any text has other ids.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from apr._core import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 10_000_000
LARGEST_FILE = 50_000_000
# Texts in one call of the package.
BATCH = 64


def random_texts() -> Iterator[str]:
    """Yield 400 texts of random scalars, nearly a third of them followed by an ASCII character."""
    numbers = random.Random(17)
    for _ in range(400):
        characters: list[str] = []
        while len(characters) < 20_000:
            code = numbers.randrange(sys.maxunicode + 1)
            if not 0xD800 <= code < 0xE000:
                characters.append(chr(code))
                if numbers.random() < 0.3:
                    characters.append(numbers.choice("aZ 0.\n'\t"))
        yield "".join(characters)


def text_files(roots: list[Path]) -> Iterator[str]:
    """Yield the texts of files in a fixed order, each once."""
    seen: set[bytes] = set()
    for path in (path for root in roots for path in walk(root)):
        try:
            content = b"" if path.stat().st_size > LARGEST_FILE else path.read_bytes()
            text = content.decode()
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(content).digest()
        if not text or "\0" in text[:4096] or digest in seen:
            continue
        seen.add(digest)
        yield text


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a directory."""
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", ".git"))
        yield from (Path(directory, name) for name in sorted(files) if not Path(directory, name).is_symlink())


def pieces(roots: list[Path], limit: float) -> Iterator[tuple[list[str], int]]:
    """Yield texts and their bytes, about 10 MB at a time."""
    piece: list[str] = []
    size = total = 0
    for texts in (random_texts(), text_files(roots)):
        for text in texts:
            piece.append(text)
            size += len(text.encode())
            if size >= PIECE or total + size >= limit:
                yield piece, size
                total += size
                piece, size = [], 0
            if total >= limit:
                return
    if piece:
        yield piece, size


def main() -> None:
    """Compare what LOG has no line of, and print the totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER.json")
    parser.add_argument("log", type=Path, metavar="LOG")
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT")
    parser.add_argument("--megabytes", type=float, default=1000, help="text to compare (default: 1000)")
    options = parser.parse_args()
    content = options.tokenizer.read_text(encoding="utf-8")
    ours, theirs = Encoder(content, 1), Tokenizer.from_str(content)
    theirs.encode_special_tokens = True
    options.log.touch()
    done = {json.loads(line)["piece"] for line in options.log.read_text().splitlines()}
    for number, (texts, size) in enumerate(pieces(options.roots, options.megabytes * 1e6)):
        if number in done:
            continue
        encoded = ours.encode(texts)
        ids = np.split(np.frombuffer(encoded.ids, "<u4"), np.cumsum(np.frombuffer(encoded.counts, "<i8")))
        different = []
        for start in range(0, len(texts), BATCH):
            expected = theirs.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
            different += [n for n, one in enumerate(expected, start) if ids[n].tolist() != one.ids]
        row = {"piece": number, "bytes": size, "texts": len(texts), "different": different}
        row["ids"], row["sha256"] = len(encoded.ids) // 4, hashlib.sha256(encoded.ids).hexdigest()
        with options.log.open("a") as log:
            log.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in options.log.read_text().splitlines()]
    nbytes, texts_, ids_ = (sum(row[key] for row in rows) for key in ("bytes", "texts", "ids"))
    wrong = sum(len(row["different"]) for row in rows)
    print(f"{options.tokenizer.name}: {nbytes:,} bytes, {texts_:,} texts, {ids_:,} ids, {wrong} texts differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()

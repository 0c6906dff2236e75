"""The data path against named peers, in one run: one function a row.

    python benches/data.py [ROW …] [--megabytes N]

Files lie in a temporary directory (TMPDIR says where), the page cache is warm, the sides of a row take turns;
figures are medians, ratios are of the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Encoding

CORES = len(os.sched_getaffinity(0))
# SmolLM2's own vocabulary, where `make demo` has been run before.
SMOLLM2 = Path(__file__).parents[1] / "demo/cache/SmolLM2-135M-Instruct.Q4_1.gguf"
# Trained on the spot where it has not: as many tokens, of the same corpus.
VOCABULARY = 49_152
# Texts of one call of the peer: a few MB, the best of several sizes that were tried.
PEER_BATCH = 512


def encode(directory: Path, megabytes: float) -> None:
    """`apr tokenize encode`, files to synced shards and manifest, beside `encode_batch_fast` in memory."""
    import numpy as np
    from tokenizers import Tokenizer

    from apr.data.encode import EncodeOptions
    from apr.data.encode import encode as to_shards
    from apr.data.tokenizers import load_tokenizer

    corpus, nbytes = python_source(directory / "corpus", megabytes)
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]
    source = SMOLLM2 if SMOLLM2.exists() else trained(corpus, directory / "vocabulary")
    loaded = load_tokenizer(source)
    as_json = directory / "tokenizer.json"
    loaded.tokenizer.save(str(as_json))
    options = EncodeOptions(
        corpus=(str(corpus),), tokenizer=as_json, output=directory / "shards", eos_policy="none", force=True
    )
    peer = Tokenizer.from_file(str(as_json))
    peer.encode_special_tokens = True

    def batches() -> Iterator[list[Encoding]]:
        for n in range(0, len(texts), PEER_BATCH):
            yield peer.encode_batch_fast(texts[n : n + PEER_BATCH], add_special_tokens=False)

    # The peer's time is that of its encoding alone: nothing is made of its ids.
    seconds = taking_turns([lambda: to_shards(options), lambda: deque(batches(), maxlen=0)], rounds=3)
    stream = np.concatenate([np.fromfile(shard, "<u4") for shard in sorted(options.output.glob("*.bin"))])
    ids = [np.array(encoding.ids, "<u4") for batch in batches() for encoding in batch]
    if not np.array_equal(stream, np.concatenate(ids)):
        sys.exit("encode: other ids than tokenizers'")
    what = f"encode {nbytes / 1e6:.0f} MB of {len(texts):,} files, {source.name}, same {len(stream):,} ids"
    row(what, "tokenizers in memory", [nbytes / 1e6 / took for took in seconds], "MB/s", at_least=0.95)


def python_source(corpus: Path, megabytes: float) -> tuple[Path, int]:
    """A tree of distinct Python files of this interpreter, repeated where they do not suffice; its bytes."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    corpus.mkdir()
    contents: dict[bytes, None] = {}
    found = 0
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        content = path.read_bytes()
        if content in contents or not is_text(content):
            continue
        contents[content] = None
        found += len(content)
        if found >= megabytes * 1e6:
            break
    repeats = max(1, round(megabytes * 1e6 / found))
    for n, content in enumerate([*contents] * repeats):
        (corpus / f"{n:06}.py").write_bytes(content)
    return corpus, found * repeats


def is_text(content: bytes) -> bool:
    """Whether it is UTF-8 that `read_text` gives back unchanged, line breaks too."""
    try:
        return b"\r" not in content and bool(content.decode())
    except UnicodeDecodeError:
        return False


def trained(corpus: Path, output: Path) -> Path:
    """A vocabulary of the size of SmolLM2's."""
    from apr.data.corpus import Corpus
    from apr.data.train_tokenizer import train

    train(Corpus([str(corpus)]), VOCABULARY, output)
    return output


def taking_turns(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each side, one after another in each round."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for act, seconds in zip(sides, taken, strict=True):
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def row(what: str, peer: str, speeds: list[float], unit: str, *, at_least: float) -> None:
    """Print a row: our speed, the peer's, the ratio and what is aimed at."""
    ours, theirs = speeds
    print(f"{what}\n    ours {ours:.2f} {unit}, {peer} {theirs:.2f} {unit}: ", end="")
    print(f"{ours / theirs:.2f} x (target at least {at_least})", flush=True)


ROWS = {"encode": encode}


def main() -> None:
    """Print the rows that are asked for, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)} (default: all)")
    parser.add_argument("--megabytes", type=float, default=100, help="of the corpus to encode")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are {', '.join(ROWS)})")
    print(f"{CORES} cores, Python {sys.version.split()[0]}")
    for name in options.rows or ROWS:
        with tempfile.TemporaryDirectory() as directory:
            ROWS[name](Path(directory), options.megabytes)


if __name__ == "__main__":
    main()

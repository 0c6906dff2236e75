"""The data path against named peers, in one run: one function a row.

    python benches/data.py [ROW …] [--megabytes N]

Files lie in a temporary directory (TMPDIR says where), the page cache is warm, the sides of a row take turns;
figures are medians, ratios are of the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
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

    from apr.data.encode import encode_corpus as to_shards
    from apr.data.encode_options import EncodeOptions
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


def repair_manifest(directory: Path, _megabytes: float) -> None:
    """228 sparse shards of 10 M tokens get their manifest; beside an interpreter that does nothing."""
    for number in range(228):
        with (directory / f"shard-{number:05}.bin").open("wb") as shard:
            shard.truncate(40_000_000)
    # The same command, but what it waits for the disk is counted apart.
    code = (
        "import os, sys, time; os.fsync = lambda _: None; "
        "import runpy; runpy.run_module('apr.repair_manifest', run_name='__main__')"
    )

    # Modules are compiled once, as wherever they are installed; elsewhere than in the tree.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")

    def command(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)

    def repair() -> None:
        (directory / "manifest.json").unlink(missing_ok=True)
        command("-c", code, str(directory))

    ours, nothing = taking_turns([repair, lambda: command("-c", "import os, sys, time, runpy")], rounds=21)
    print("repair_manifest of 228 sparse shards of 10 M tokens, fsync apart")
    print(
        f"    {(ours - nothing) * 1e3:.1f} ms above the interpreter's start (target at most 60)", flush=True
    )


def zipfian(directory: Path, shards: int, vocabulary: int = 151_936) -> int:
    """Shards of 10 M ids as text has them: the frequent ones tend to be low; their bytes."""
    import numpy as np

    random = np.random.default_rng(0)
    by_rank = np.argsort(np.argsort(np.log(np.arange(1, vocabulary + 1)) + random.normal(0, 1, vocabulary)))
    cumulated = np.cumsum(1 / (np.arange(vocabulary) + 2.7))
    for number in range(shards):
        ranks = np.searchsorted(cumulated, random.random(10_000_000) * cumulated[-1])
        by_rank[ranks].astype("<u4").tofile(directory / f"shard-{number:05}.bin")
    return shards * 40_000_000


def verify(directory: Path, _megabytes: float) -> None:
    """The scan of `--verify` without hashes beside a parallel read, and with them beside `hashlib`'s."""
    from apr.data.listing import list_shards
    from apr.data.scan import scan_shards

    nbytes = zipfian(directory, 10)
    shards = list_shards(directory)
    paths = [shard.path for shard in shards]

    def on_all_cores(act: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> None:
            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(act, paths))

        return run

    def read(path: Path) -> None:
        buffer = memoryview(bytearray(1 << 20))
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def sha256(path: Path) -> None:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    for hashes, peer, act, target in (
        (False, "plain parallel read", read, 0.35),
        (True, f"hashlib in {CORES} threads", sha256, 0.9),
    ):
        sides = [lambda hashes=hashes: scan_shards(shards, hashes=hashes), on_all_cores(act)]
        seconds = taking_turns(sides, rounds=5)
        what = f"--verify of {nbytes / 1e6:.0f} MB, 151,936 ids, SHA-256 {'on' if hashes else 'off'}"
        row(what, peer, [nbytes / 1e9 / took for took in seconds], "GB/s", at_least=target)


def loader(directory: Path, _megabytes: float) -> None:
    """Batches of 16 x 1024 in random order, int64, beside a loader as nanoGPT has it."""
    import numpy as np
    import torch

    from apr.data import Loader, ShardDir, Windows, repair

    zipfian(directory, 10)
    repair(directory, verify=True)
    windows = Windows(ShardDir(directory), 1024)
    files = sorted(directory.glob("*.bin"))
    random = np.random.default_rng(0)

    def ours() -> None:
        with Loader(windows, 16) as batches:
            for _ in range(500):
                next(batches)

    def theirs() -> None:
        for _ in range(500):
            # A mapping anew for each batch, so that pages that were read do not pile up.
            data = np.memmap(files[random.integers(len(files))], dtype=np.uint32, mode="r")
            starts = random.integers(len(data) - 1024, size=16)
            x = torch.stack([torch.from_numpy(data[i : i + 1024].astype(np.int64)) for i in starts])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1025].astype(np.int64)) for i in starts])
            del x, y

    tokens = 500 * 16 * 1024
    seconds = taking_turns([ours, theirs], rounds=5)
    speeds = [tokens / 1e6 / took for took in seconds]
    row("loader, 16 x 1024", "nanoGPT-style np.memmap", speeds, "M tokens/s", at_least=1)
    print(f"    {speeds[0]:.0f} M tokens/s (target at least 200)", flush=True)


ROWS = {"encode": encode, "repair_manifest": repair_manifest, "verify": verify, "loader": loader}


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

"""Compare the data path with named peers in one run; one function per row.

    python benches/data.py [ROW …] [--megabytes N] [--tokenizer PATH …] [--validate DIR]

`encode` and `parts` use the Python files of this interpreter, or with `--validate` the text files of a
directory of your own. gigatoken is compared if it is installed; it is not needed for anything else.

Files are in a temporary directory (set TMPDIR to choose the disk), the page cache is warm, and the sides of a
row take turns. Figures are medians.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Encoding

CORES = len(os.sched_getaffinity(0))
# SmolLM2's own vocabulary, if `make demo` has run before.
SMOLLM2 = Path(__file__).parents[1] / "demo/cache/SmolLM2-135M-Instruct.Q4_1.gguf"
# Otherwise a vocabulary of this size is trained on the corpus first.
VOCABULARY = 49_152
# Texts in one call of the peer: the fastest of several sizes that we tried, a few MB.
PEER_BATCH = 512
ROUNDS = 3


def encode(directory: Path, options: argparse.Namespace) -> None:
    """Encode files to flushed shards and a manifest, and in memory; the peers encode in memory."""
    corpus, nbytes = text_files(directory / "corpus", options)
    sources = options.tokenizer or [default_tokenizer(corpus, directory)]
    for source in sources:
        encode_with(Path(source), directory, corpus, nbytes)


def encode_with(source: Path, directory: Path, corpus: Path, nbytes: int) -> None:
    """Encode with one vocabulary, and compare the ids."""
    import numpy as np
    from tokenizers import Tokenizer

    from apr._core import Encoder
    from apr.data.encode import encode_corpus as to_shards
    from apr.data.encode_options import EncodeOptions
    from apr.data.tokenizers import load_tokenizer

    texts = [path.read_bytes() for path in sorted(corpus.iterdir())]
    as_json = directory / "tokenizer.json"
    load_tokenizer(source).tokenizer.save(str(as_json))
    options = EncodeOptions(
        corpus=(str(corpus),), tokenizer=as_json, output=directory / "shards", eos_policy="none", force=True
    )
    environment = compiled(directory)
    peer = Tokenizer.from_file(str(as_json))
    peer.encode_special_tokens = True

    def batches() -> Iterator[list[Encoding]]:
        for n in range(0, len(texts), PEER_BATCH):
            batch = [text.decode() for text in texts[n : n + PEER_BATCH]]
            yield peer.encode_batch_fast(batch, add_special_tokens=False)

    # A new encoder each time: its cache is empty, as that of gigatoken's new tokenizer is.
    content = as_json.read_text(encoding="utf-8")
    encoders = iter([Encoder(content, CORES) for _ in range(ROUNDS)])

    def in_memory() -> None:
        next(encoders).encode_values(texts)

    def command() -> None:
        arguments = ["--corpus", corpus, "--tokenizer", as_json, "--output", directory / "command"]
        encode_command([*arguments, "--eos-policy", "none", "--force"], environment)

    sides: dict[str, Callable[[], object]] = {
        "ours, command": command,
        "ours, to shards": lambda: to_shards(options),
        "ours, in memory": in_memory,
        "tokenizers": lambda: deque(batches(), maxlen=0),
    }
    others: list[Any] = []
    try:
        import gigatoken

        others = [gigatoken.Tokenizer.from_json(content) for _ in range(ROUNDS)]
        unused = iter(others)
        sides["gigatoken"] = lambda: next(unused).encode_batch(texts)
    except ImportError:
        print("encode: gigatoken is not installed; it is left out")
    except RuntimeError as error:
        print(f"encode: gigatoken cannot read {source.name}: {str(error).splitlines()[0]}")
    wall, cpu = zip(*taking_turns_with_cpu(list(sides.values()), ROUNDS), strict=True)
    stream = np.concatenate([np.fromfile(shard, "<u4") for shard in sorted(options.output.glob("*.bin"))])
    ids = np.concatenate([np.array(encoding.ids, "<u4") for batch in batches() for encoding in batch])
    if not np.array_equal(stream, ids):
        sys.exit("encode: the ids differ from those of tokenizers")
    what = f"{nbytes / 1e6:.0f} MB of {len(texts):,} files, {source.name}"
    print(f"encode {what}: {len(stream):,} ids as tokenizers")
    for name, wall_seconds, cpu_seconds in zip(sides, wall, cpu, strict=True):
        rate, speed = nbytes / 1e6 / cpu_seconds, nbytes / 1e6 / wall_seconds
        print(f"    {name:<16}{rate:8.1f} MB per CPU-second {speed:8.1f} MB/s", flush=True)
    by_name = dict(zip(sides, cpu, strict=True))
    ours = by_name["ours, in memory"]
    print(f"    in memory {by_name['tokenizers'] / ours:.1f} x tokenizers (target at least 25)", end="")
    if others:
        import awkward

        theirs = awkward.to_numpy(awkward.flatten(others[0].encode_batch(texts)))
        more = "the same ids"
        if len(theirs) != len(ids):
            more = f"{len(theirs) - len(ids):+,} ids"
        elif not np.array_equal(theirs, ids):
            more = f"{np.count_nonzero(theirs != ids):,} other ids"
        print(
            f", {by_name['gigatoken'] / ours:.2f} x gigatoken (target at least 0.8), which has {more}", end=""
        )
    print(flush=True)


def scaling(directory: Path, options: argparse.Namespace) -> None:
    """Encode with one worker and with two."""
    corpus, nbytes = text_files(directory / "corpus", options)
    source = (options.tokenizer or [default_tokenizer(corpus, directory)])[0]
    environment = compiled(directory)

    def run(workers: int) -> None:
        arguments = ["--corpus", corpus, "--tokenizer", source, "--output", directory / "shards", "--force"]
        encode_command([*arguments, "--workers", str(workers)], environment)

    counts = (1, 2)
    seconds = taking_turns_with_cpu([lambda: run(1), lambda: run(2)], ROUNDS)
    print(f"encode {nbytes / 1e6:.0f} MB with {Path(source).name}: the whole command")
    for workers, (wall, cpu) in zip(counts, seconds, strict=True):
        print(f"    {workers} worker{'s' * (workers > 1)}: {wall:.2f} s, {cpu:.2f} CPU-seconds")
    print(f"    {seconds[0][0] / seconds[1][0]:.2f} x as fast with two", flush=True)


def compiled(directory: Path) -> dict[str, str]:
    """Return an environment in which modules are compiled once, as in an installation."""
    # Outside of the source tree.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(directory / "compiled")}


def encode_command(arguments: list[Any], environment: dict[str, str]) -> None:
    """Run `apr tokenize encode`."""
    command = [sys.executable, "-m", "apr", "tokenize", "encode", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def short(directory: Path, options: argparse.Namespace) -> None:
    """Encode documents of one character; the peer is the same with half as many of them."""
    from apr.data.encode import encode_corpus as to_shards
    from apr.data.encode_options import EncodeOptions

    corpus, _ = text_files(directory / "corpus", options)
    source = Path((options.tokenizer or [default_tokenizer(corpus, directory)])[0])
    counts = (100_000, 200_000)
    for count in counts:
        (directory / f"{count}.jsonl").write_bytes(b'{"content": "x"}\n' * count)

    def run(count: int) -> None:
        path = str(directory / f"{count}.jsonl")
        to_shards(EncodeOptions((path,), source, directory / "shards", force=True))

    half, whole = (
        cpu for _, cpu in taking_turns_with_cpu([lambda: run(counts[0]), lambda: run(counts[1])], ROUNDS)
    )
    # The start, which is the same for both, cancels out: four times the difference would be a square.
    print(f"encode {counts[1]:,} documents of one character: {whole:.2f} CPU-seconds", end="")
    print(f", half of them {half:.2f}: {whole / half:.2f} x (target at most 2.2)", flush=True)


def parts(directory: Path, options: argparse.Namespace) -> None:
    """Encode in four parts, one after another, and join them; the peer is one run, and `cp` with `sha256`."""
    from apr.data.encode import encode_corpus as to_shards
    from apr.data.encode_options import EncodeOptions
    from apr.data.merge import merge_parts

    corpus, nbytes = text_files(directory / "corpus", options)
    source = (options.tokenizer or [default_tokenizer(corpus, directory)])[0]

    def run(name: str, part: str | None = None) -> Path:
        output = directory / name
        to_shards(
            EncodeOptions((str(corpus),), Path(source), output, shard_tokens=1_000_000, part=part, force=True)
        )
        return output

    made = [directory / f"part-{n}" for n in range(1, 5)]
    sides: list[Callable[[], object]] = [
        lambda: run("whole"),
        lambda: [run(path.name, f"{n}/4") for n, path in enumerate(made, start=1)],
        lambda: merge_parts(made, directory / "merged", force=True),
    ]
    (whole, _), (in_parts, _), (merging, merging_cpu) = taking_turns_with_cpu(sides, rounds=3)
    shards = sorted((directory / "whole").glob("*.bin"))
    if any(shard.read_bytes() != (directory / "merged" / shard.name).read_bytes() for shard in shards):
        sys.exit("parts: the joined shards differ from those of one run")
    size = sum(shard.stat().st_size for shard in shards)
    print(f"encode {nbytes / 1e6:.0f} MB in 4 parts on this machine, and join them: the shards of one run")
    print(f"    one run {whole:.2f} s, the parts one after another {in_parts:.2f} s", flush=True)
    print(
        f"    merge {size / 1e9 / merging:.2f} GB/s (target at least 1), "
        f"{size / 1e9 / merging_cpu:.2f} GB per CPU-second, with checks of both and fsync",
        flush=True,
    )


def text_files(corpus: Path, options: argparse.Namespace) -> tuple[Path, int]:
    """Write the files of the corpus; return their size."""
    if options.validate is None:
        return python_source(corpus, options.megabytes)
    corpus.mkdir()
    size = 0
    for n, path in enumerate(sorted(Path(options.validate).rglob("*"))):
        if path.is_file() and is_text(content := path.read_bytes()):
            (corpus / f"{n:07}").write_bytes(content)
            size += len(content)
        if size >= options.megabytes * 1e6:
            break
    return corpus, size


def python_source(corpus: Path, megabytes: float) -> tuple[Path, int]:
    """Write distinct Python files of this interpreter, repeated if there are too few; return their size."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    corpus.mkdir()
    contents: dict[bytes, None] = {}
    size = 0
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        content = path.read_bytes()
        if content in contents or not is_text(content):
            continue
        contents[content] = None
        size += len(content)
        if size >= megabytes * 1e6:
            break
    repeats = max(1, round(megabytes * 1e6 / size))
    for n, content in enumerate([*contents] * repeats):
        (corpus / f"{n:06}.py").write_bytes(content)
    return corpus, size * repeats


def is_text(content: bytes) -> bool:
    """Whether `read_text` returns these bytes unchanged: UTF-8 without carriage returns."""
    try:
        return b"\r" not in content and bool(content.decode())
    except UnicodeDecodeError:
        return False


def default_tokenizer(corpus: Path, directory: Path) -> Path:
    """Return SmolLM2's tokenizer, or a trained one."""
    return SMOLLM2 if SMOLLM2.exists() else trained(corpus, directory / "vocabulary")


def trained(corpus: Path, output: Path) -> Path:
    """Train a vocabulary of the size of SmolLM2's."""
    from apr.data.corpus import Corpus
    from apr.data.train_tokenizer import train

    train(Corpus([str(corpus)]), VOCABULARY, output)
    return output


def taking_turns(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median seconds of each side. They take turns."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for act, seconds in zip(sides, taken, strict=True):
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def taking_turns_with_cpu(sides: list[Callable[[], object]], rounds: int) -> list[tuple[float, float]]:
    """Return the median seconds and CPU-seconds of each side. They take turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(rounds):
        for act, seconds in zip(sides, taken, strict=True):
            start, cpu = time.perf_counter(), sum(os.times()[:4])
            act()
            # Of this process and of those that it ran.
            seconds.append((time.perf_counter() - start, sum(os.times()[:4]) - cpu))
    return [
        (statistics.median(wall for wall, _ in seconds), statistics.median(cpu for _, cpu in seconds))
        for seconds in taken
    ]


def row(what: str, peer: str, speeds: list[float], unit: str, *, at_least: float) -> None:
    """Print our speed, the peer's, the ratio and its target."""
    ours, theirs = speeds
    print(f"{what}\n    ours {ours:.2f} {unit}, {peer} {theirs:.2f} {unit}: ", end="")
    print(f"{ours / theirs:.2f} x (target at least {at_least})", flush=True)


def repair_manifest(directory: Path, _options: argparse.Namespace) -> None:
    """Write the manifest of 228 sparse shards of 10 M tokens; the peer is an idle interpreter."""
    for number in range(228):
        with (directory / f"shard-{number:05}.bin").open("wb") as shard:
            shard.truncate(40_000_000)
    # The disk's flush time varies by a factor of ten and is not ours, so it is left out.
    code = (
        "import os, sys, time; os.fsync = lambda _: None; "
        "import runpy; runpy.run_module('apr.repair_manifest', run_name='__main__')"
    )

    environment = compiled(directory)

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
    """Write shards of 10 M ids with the frequencies of text, frequent ones mostly low; return their size."""
    import numpy as np

    random = np.random.default_rng(0)
    by_rank = np.argsort(np.argsort(np.log(np.arange(1, vocabulary + 1)) + random.normal(0, 1, vocabulary)))
    cumulated = np.cumsum(1 / (np.arange(vocabulary) + 2.7))
    for number in range(shards):
        ranks = np.searchsorted(cumulated, random.random(10_000_000) * cumulated[-1])
        by_rank[ranks].astype("<u4").tofile(directory / f"shard-{number:05}.bin")
    return shards * 40_000_000


def verify(directory: Path, _options: argparse.Namespace) -> None:
    """Scan as `--verify` does: without hashes against a parallel read, with them against `hashlib`."""
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
        (True, f"hashlib in {CORES} threads", sha256, 0.6),
    ):
        sides = [lambda hashes=hashes: scan_shards(shards, hashes=hashes), on_all_cores(act)]
        seconds = taking_turns(sides, rounds=5)
        what = f"--verify of {nbytes / 1e6:.0f} MB, 151,936 ids, SHA-256 {'on' if hashes else 'off'}"
        row(what, peer, [nbytes / 1e9 / took for took in seconds], "GB/s", at_least=target)


def loader(directory: Path, _options: argparse.Namespace) -> None:
    """Load batches of 16 x 1024 int64 ids in random order; the peer is a loader as in nanoGPT."""
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
            # nanoGPT maps the file again for each batch, so that read pages do not pile up.
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


ROWS = {
    "encode": encode,
    "parts": parts,
    "scaling": scaling,
    "short": short,
    "repair_manifest": repair_manifest,
    "verify": verify,
    "loader": loader,
}


def main() -> None:
    """Print the requested rows, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)} (default: all)")
    parser.add_argument(
        "--megabytes", type=float, default=100, help="size of the corpus to encode (default: 100)"
    )
    parser.add_argument(
        "--tokenizer", nargs="+", help="vocabularies to encode with (default: SmolLM2's, or a trained one)"
    )
    parser.add_argument("--validate", metavar="DIR", help="encode the text files of this directory")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(sorted(unknown))}; the rows are {', '.join(ROWS)}")
    print(f"{CORES} cores, Python {sys.version.split()[0]}")
    for name in options.rows or ROWS:
        with tempfile.TemporaryDirectory() as directory:
            ROWS[name](Path(directory), options)


if __name__ == "__main__":
    main()

"""Compare the container with named peers in one run: median times, ratios, peak memory.

The peers are safetensors, `torch.load(mmap=True)`, zlib and the gguf package. The sides of a row take turns.
The page cache is warm; files are in a temporary directory (set TMPDIR to choose the disk). Peak memory is the
growth of the resident set during one call, mapped pages included.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LAYERS, HIDDEN, FEED_FORWARD, VOCABULARY, KV = 24, 1280, 6912, 32_000, 160
WINDOW = 1 << 20


@dataclass
class Row:
    """One task of ours and of its peers, with the target for the ratio to the first peer."""

    what: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    rounds: int
    target: float | None
    faster: bool = False
    """Whether the ratio is their time over ours; otherwise it is ours over theirs."""


def random_bits(values: int) -> Tensor:
    """Return random bfloat16 values. Zeros would compress, and sparse files would skip them."""
    import torch

    return torch.randint(-(2**15), 2**15, (values,), dtype=torch.int16).view(torch.bfloat16)


def decoder() -> dict[str, Tensor]:
    """Return the 290 tensors of a Qwen2 decoder with 24 layers: 1 GB in bf16."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (VOCABULARY, HIDDEN),
        "norm.weight": (HIDDEN,),
    }
    for n in range(LAYERS):
        shapes |= {
            f"layers.{n}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"layers.{n}.self_attn.q_proj.bias": (HIDDEN,),
            f"layers.{n}.self_attn.k_proj.weight": (KV, HIDDEN),
            f"layers.{n}.self_attn.k_proj.bias": (KV,),
            f"layers.{n}.self_attn.v_proj.weight": (KV, HIDDEN),
            f"layers.{n}.self_attn.v_proj.bias": (KV,),
            f"layers.{n}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"layers.{n}.mlp.gate_proj.weight": (FEED_FORWARD // 2, HIDDEN),
            f"layers.{n}.mlp.up_proj.weight": (FEED_FORWARD // 2, HIDDEN),
            f"layers.{n}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
            f"layers.{n}.input_layernorm.weight": (HIDDEN,),
            f"layers.{n}.post_attention_layernorm.weight": (HIDDEN,),
        }
    sizes = {name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}
    bits = random_bits(max(sizes.values()))
    return {f"model.{name}": bits[: sizes[name]].reshape(shape).clone() for name, shape in shapes.items()}


def experts(count: int) -> dict[str, Tensor]:
    """Return many small tensors, as a mixture of experts has."""
    bits = random_bits(128)
    return {
        f"model.layers.{n // 512}.mlp.experts.{n % 512}.w": bits.view(8, 16).clone() for n in range(count)
    }


def write(directory: Path, model: dict[str, Tensor]) -> tuple[Path, Path, Path]:
    """Write the same tensors as .apr, .safetensors and .pt."""
    import safetensors.torch
    import torch

    import apr

    paths = (
        directory / f"{len(model)}.apr",
        directory / f"{len(model)}.safetensors",
        directory / f"{len(model)}.pt",
    )
    apr.save(model, paths[0])
    safetensors.torch.save_file(model, paths[1])
    torch.save(model, paths[2])
    return paths


def tokenizer() -> dict[str, object]:
    """Return metadata with a tokenizer.json of Qwen's size: 150,000 tokens and as many merges, 12 MB."""
    rng = random.Random(0)
    tokens = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyzĠ", k=rng.randint(4, 23))) for _ in range(150_000)
    ]
    model = {
        "type": "BPE",
        "vocab": {f"{token}{n}": n for n, token in enumerate(tokens)},
        "merges": [f"{a} {b}" for a, b in zip(tokens, reversed(tokens), strict=True)],
    }
    return {"hf_tokenizer": {"tokenizer.json": json.dumps({"model": model}, ensure_ascii=False, indent=1)}}


def with_tokenizer(directory: Path, model: dict[str, Tensor]) -> tuple[Path, list[Path]]:
    """Write one .apr with a tokenizer, the same in several files, and as many safetensors files."""
    import safetensors.torch

    import apr
    from apr.convert import ConvertOptions, convert

    one = directory / "tokenizer.apr"
    apr.save(model, one, tokenizer())
    several = one.with_suffix("")
    convert(one, several / "model.apr.index.json", ConvertOptions(max_shard_size=150_000_000))
    shards = []
    for shard in sorted(several.glob("*.apr")):
        shards.append(directory / f"{shard.stem}.safetensors")
        safetensors.torch.save_file({name: model[name] for name in apr.load(shard)}, shards[-1])
    return one, shards


def times(row: Row) -> list[float]:
    """Return the median seconds of each side. They take turns; the first round does not count."""
    sides = [row.ours, *row.peers.values()]
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(row.rounds + 1):
        for act, seconds in zip(sides, taken, strict=True):
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in taken]


def peak(act: Callable[[], object]) -> float:
    """Return the largest growth of the resident set during a call, in megabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = act()  # noqa: F841 (keeps the tensors alive until the peak is read)
    return (status("VmHWM") - before) / 1e3


def status(key: str) -> int:
    """Return a figure of /proc/self/status in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def python(code: str) -> Callable[[], object]:
    """Return a function that runs code in a new interpreter."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def crc(path: Path) -> int:
    """Return zlib's CRC32 of a file, computed in one thread."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        return zlib.crc32(pages)


def parallel_read(path: Path) -> None:
    """Read every byte of a file, one thread per core."""
    threads, size = os.cpu_count() or 1, path.stat().st_size

    def part(n: int) -> None:
        buffer = memoryview(bytearray(WINDOW))
        with path.open("rb", buffering=0) as file:
            for at in range(n * WINDOW, size, threads * WINDOW):
                os.preadv(file.fileno(), [buffer], at)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))


def sequential_read(path: Path) -> None:
    """Read every byte of a file in one thread."""
    buffer = memoryview(bytearray(WINDOW))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def uncached(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def synced(path: Path) -> None:
    """Flush a file and its directory to the disk, as `apr.save` does."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def rows(directory: Path) -> list[Row]:
    """Return the rows of the table."""
    import gguf
    import numpy as np
    import safetensors
    import safetensors.torch
    import torch

    import apr

    opened: list[Row] = []
    for model, rounds, target in ((experts(20), 50, None), (decoder(), 15, 0.25), (experts(18_867), 7, 0.3)):
        ours, theirs, pickled = write(directory, model)
        opened.append(
            Row(
                f"open + dict of {len(model)} tensors",
                lambda ours=ours: dict(apr.load(ours)),
                {
                    "safetensors.load_file": lambda theirs=theirs: safetensors.torch.load_file(theirs),
                    "torch.load(mmap)": lambda pickled=pickled: torch.load(pickled, mmap=True),
                },
                rounds,
                target,
            )
        )
    ours, theirs, pickled = (directory / f"290.{suffix}" for suffix in ("apr", "safetensors", "pt"))
    name, model = "model.norm.weight", decoder()
    with_text, shards = with_tokenizer(directory, model)

    def safe_tensor() -> object:
        with safetensors.safe_open(theirs, "pt") as file:
            return file.get_tensor(name)

    def copied() -> object:
        return {name: values.clone() for name, values in safetensors.torch.load_file(theirs).items()}

    def saved() -> None:
        safetensors.torch.save_file(model, theirs)
        synced(theirs)

    text = json.dumps(dict(apr.load(with_text).metadata), ensure_ascii=False)
    q4_k = np.random.default_rng(0).integers(0, 256, (4096, 16, 144), np.uint8)
    q4_k[..., :4] = [0, 20, 0, 18]  # finite scales
    quantized = directory / "q4_k.apr"
    from apr.container.save import TensorSpec
    from apr.container.save import write as write_stored

    write_stored(quantized, None, [TensorSpec("w", "q4_k", (4096, 4096))], lambda _: q4_k)
    blocks = q4_k.reshape(4096, -1)
    k_quant = gguf.GGMLQuantizationType.Q4_K
    return [
        *opened,
        Row(
            "open + dict of 290 tensors, 12 MB of tokenizer in ours",
            lambda: dict(apr.load(with_text)),
            {"safetensors.load_file": lambda: safetensors.torch.load_file(theirs)},
            15,
            0.25,
        ),
        Row(
            "open + one tensor of 1 GB, 12 MB of tokenizer in ours",
            lambda: apr.load(with_text)[name],
            {"safe_open": safe_tensor},
            50,
            0.7,
        ),
        Row(
            f"open + dict of 290 tensors in {len(shards)} files, tokenizer in ours",
            lambda: dict(apr.load(with_text.with_suffix(""))),
            {"load_file of each": lambda: [safetensors.torch.load_file(shard) for shard in shards]},
            15,
            None,
        ),
        Row(
            "metadata of 12 MB, read, checked and parsed",
            lambda: apr.load(with_text).metadata,
            {"json.loads of the same text": lambda: json.loads(text)},
            7,
            None,
        ),
        Row(
            "open + one tensor of 1 GB",
            lambda: apr.load(ours)[name],
            {"safe_open": safe_tensor, "torch.load(mmap)": lambda: torch.load(pickled, mmap=True)[name]},
            50,
            0.7,
        ),
        Row(
            "to_torch of 1 GB, every byte read",
            lambda: apr.load(ours).to_torch(),
            {"load_file + clone": copied},
            5,
            None,
        ),
        Row(
            "verify 1 GB",
            lambda: apr.verify(ours).ok or sys.exit("the file is damaged"),
            {"zlib.crc32, one thread": lambda: crc(ours)},
            7,
            4.0,
            faster=True,
        ),
        Row(
            "verify 1 GB",
            lambda: apr.verify(ours),
            {"plain parallel read": lambda: parallel_read(ours)},
            7,
            0.7,
            faster=True,
        ),
        Row(
            "seal 1 GB of safetensors, from the disk",
            lambda: (uncached(theirs), apr.seal(theirs)),
            {"plain parallel read": lambda: (uncached(theirs), parallel_read(theirs))},
            5,
            0.8,
            faster=True,
        ),
        Row(
            "seal 1 GB of safetensors",
            lambda: apr.seal(theirs),
            {
                "plain read, one thread": lambda: sequential_read(theirs),
                "plain parallel read": lambda: parallel_read(theirs),
            },
            7,
            0.8,
            faster=True,
        ),
        Row(
            "save 1 GB, with fsync",
            lambda: apr.save(model, ours),
            {"safetensors.save_file + fsync": saved},
            5,
            1.1,
        ),
        Row(
            "dequantize q4_k, 16.8 M values",
            lambda: apr.load(quantized).numpy("w"),
            {"gguf.dequantize": lambda: gguf.dequantize(blocks, k_quant)},
            5,
            5.0,
            faster=True,
        ),
    ]


def show(row: Row) -> None:
    """Print one line for each peer of a row."""
    seconds = times(row)
    memory = [peak(act) for act in (row.ours, *row.peers.values())]
    for n, peer in enumerate(row.peers, 1):
        ratio = seconds[n] / seconds[0] if row.faster else seconds[0] / seconds[n]
        aim = (
            f"(target {'at least' if row.faster else 'at most'} {row.target})"
            if n == 1 and row.target
            else ""
        )
        what = f"{row.what} / {peer}"
        took = f"{seconds[0] * 1e3:>8.2f} ms{seconds[n] * 1e3:>9.2f} ms{ratio:>7.2f} x"
        print(f"{what:<62}{took}{memory[0]:>9.1f} MB{memory[n]:>8.1f} MB  {aim}", flush=True)


def main() -> None:
    """Print the table."""
    import torch

    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"{'':<62}{'ours':>11}{'peer':>12}{'':>9}{'peak: ours':>12}{'peer':>11}")
    starts = Row("import apr / pass", python("import apr"), {"": python("pass")}, 40, None)
    with tempfile.TemporaryDirectory() as directory:
        for row in rows(Path(directory)):
            show(row)
    ours, theirs = times(starts)
    print(f"import apr: +{(ours - theirs) * 1e3:.1f} ms over `pass` (target at most 10)")


if __name__ == "__main__":
    main()

"""Load a state dict to a GPU: `to_torch` against safetensors, and what the hardware allows.

    python benches/gpu/load.py [--runs N] [--skip-large]

2 GB and 8 GB of bf16 in 580 and 2,320 tensors of a decoder's sizes, then 18,867 tensors of 100 kB; page cache
warm, medians. Peers: `safetensors.torch.load_file`, and with safetensors 0.9
`safe_open(...).prefetch(device=...)`; the sides take turns. Every value of `to_torch` is compared first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import apr
from container import decoder, random_bits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    State = dict[str, Tensor]

TENSORS, BYTES = 18_867, 100_000


def main() -> None:
    """Compare the bytes, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--skip-large", action="store_true", help="leave out the 8 GB")
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, safetensors {safetensors.__version__}, "
        f"{os.cpu_count()} cores"
    )
    one = decoder()
    bits = random_bits(BYTES // 2)
    models: dict[str, Callable[[], State]] = {
        "2 GB in 580 tensors": lambda: copies(one, 2),
        "8 GB in 2,320 tensors": lambda: copies(one, 8),
        "18,867 tensors of 100 kB": lambda: {f"experts.{n}.w": bits.clone() for n in range(TENSORS)},
    }
    with tempfile.TemporaryDirectory() as directory:
        for what, make in models.items():
            if not (options.skip_large and what.startswith("8 GB")):
                compare(what, make(), Path(directory), options.runs)
    host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    copied = seconds({"copy": lambda: there.copy_(host, non_blocking=True)}, options.runs)["copy"]
    print(f"page-locked copy: {host.numel() / copied / 1e9:.1f} GB/s")


def copies(model: State, count: int) -> State:
    """Return a model's tensors several times, each with values of its own memory."""
    return {f"{n}.{name}": values.clone() for n in range(count) for name, values in model.items()}


def compare(what: str, model: State, directory: Path, runs: int) -> None:
    """Write a model in both formats, check what `to_torch` returns, and print how long each side takes."""
    ours, theirs = directory / "m.apr", directory / "m.safetensors"
    apr.save(model, ours)
    safetensors.torch.save_file(model, theirs)
    state = apr.load(ours).to_torch("cuda")
    bits = torch.int16  # random bits contain NaNs, which never compare equal
    assert all(
        torch.equal(state[name].view(bits), values.cuda().view(bits)) for name, values in model.items()
    )
    del state, model
    size = ours.stat().st_size
    sides: dict[str, Callable[[], object]] = {
        "apr": lambda: apr.load(ours).to_torch("cuda"),
        "load_file": lambda: safetensors.torch.load_file(theirs, device="cuda"),
    }
    if hasattr(safetensors.safe_open, "prefetch"):
        sides["prefetch"] = lambda: prefetched(theirs)
    medians = seconds(sides, runs)
    for name, median in medians.items():
        ratio = "" if name == "apr" else f"  apr is {median / medians['apr']:.2f} x as fast"
        print(
            f"{what:<26} {name:<10} {median * 1e3:>8.1f} ms  {size / median / 1e9:>5.1f} GB/s{ratio}",
            flush=True,
        )
    ours.unlink()
    theirs.unlink()


def prefetched(path: Path) -> State:
    """Return a state dict as safetensors 0.9 loads it fastest."""
    with safetensors.safe_open(path, framework="pt") as file, file.prefetch(device="cuda:0") as loader:
        return dict(loader)


def seconds(sides: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median of each side's calls, which take turns, after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + runs):
        for name, act in sides.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            result = act()
            torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()

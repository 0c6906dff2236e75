"""Load a state dict to a GPU: `to_torch` against safetensors, and what the hardware allows.

    python benches/gpu/load.py

2.2 GB of bf16 in 580 tensors, then 18,867 small tensors; page cache warm, medians of seven.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import apr
from container import decoder, experts

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(act: Callable[[], object]) -> float:
    """Return the median of seven calls after one that does not count. Each result is freed."""
    taken = []
    for _ in range(8):
        start = time.perf_counter()
        result = act()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
        del result
    return statistics.median(taken[1:])


def main() -> None:
    """Compare the bytes, then print the table."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as directory:
        large = decoder() | {f"again.{name}": values for name, values in decoder().items()}
        for what, model in (("580 tensors", large), ("18,867 tensors", experts(18_867))):
            ours, theirs = Path(directory, "m.apr"), Path(directory, "m.safetensors")
            apr.save(model, ours)
            safetensors.torch.save_file(model, theirs)
            state = apr.load(ours).to_torch("cuda")
            bits = torch.int16  # random bits contain NaNs, which never compare equal
            assert all(torch.equal(state[n].cpu().view(bits), v.view(bits)) for n, v in model.items())
            del state
            size = ours.stat().st_size
            for where in ("cuda", "cpu"):
                us = seconds(lambda ours=ours, where=where: apr.load(ours).to_torch(where))
                peer = "safetensors.load_file" if where == "cuda" else "load_file + clone"

                def load(theirs: Path = theirs, where: str = where) -> dict[str, torch.Tensor]:
                    state = safetensors.torch.load_file(theirs, device=where)
                    return state if where == "cuda" else {n: v.clone() for n, v in state.items()}

                them = seconds(load)
                print(
                    f"{what} to {where}: {us * 1e3:.1f} ms ({size / us / 1e9:.1f} GB/s), "
                    f"{peer} {them * 1e3:.1f} ms: {them / us:.2f} x as fast",
                    flush=True,
                )
    host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    copied = seconds(lambda: there.copy_(host, non_blocking=True))
    print(f"page-locked copy: {host.numel() / copied / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()

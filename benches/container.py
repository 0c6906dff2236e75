"""The container against named peers, in one run: medians and ratios.

(a) `apr.load` and a dict of all tensors of a 1 GB, 290-tensor bf16 file against
    `safetensors.torch.load_file`;
(b) `apr verify` of that file against `zlib.crc32` over its mapped bytes on one thread;
(c) `python -c 'import apr'` over `python -c pass`.

The two sides of a row take turns, the page cache is warm, files lie in a temporary directory.
"""

from __future__ import annotations

import mmap
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, HIDDEN, FEED_FORWARD, VOCABULARY, KV = 24, 1280, 6912, 32_000, 160
ROUNDS, STARTS = 15, 40


def tensors() -> dict[str, object]:
    """290 tensors of a Qwen2 decoder with 24 layers, 1 GB in bf16."""
    import torch

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
    # Random bits: nothing on the way may profit from zeros.
    bits = torch.randint(-(2**15), 2**15, (max(map(size, shapes.values())),), dtype=torch.int16)
    return {
        f"model.{name}": bits[: size(s)].view(torch.bfloat16).reshape(s).clone() for name, s in shapes.items()
    }


def size(shape: tuple[int, ...]) -> int:
    """Values under a shape."""
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def medians(rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, taking turns, after one round that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for act, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            act()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def python(code: str) -> None:
    """Run a statement in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True)


def crc(path: Path) -> int:
    """zlib's CRC32 of a file, one thread."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        return zlib.crc32(pages)


def main() -> None:
    """Print the table."""
    import safetensors.torch

    import apr

    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "m.apr"), Path(directory, "m.safetensors")
        model = tensors()
        apr.save(model, ours)
        safetensors.torch.save_file(model, theirs)
        print(f"{len(model)} tensors, {ours.stat().st_size / 1e9:.2f} GB, bf16")
        del model

        def verify() -> None:
            assert apr.verify(ours).ok

        load = medians(ROUNDS, lambda: dict(apr.load(ours)), lambda: safetensors.torch.load_file(theirs))
        check = medians(5, verify, lambda: crc(ours))
        start = medians(STARTS, lambda: python("import apr"), lambda: python("pass"))
    print(f"{'':<44}{'ours':>10}{'peer':>10}")
    row("load, all tensors / safetensors.load_file", load, f"{load[0] / load[1]:.2f} x (target at most 0.5)")
    row("verify / zlib.crc32, one thread", check, f"{check[1] / check[0]:.1f} x as fast (target at least 3)")
    row("import apr / pass", start, f"+{(start[0] - start[1]) * 1e3:.1f} ms (target at most 10)")


def row(what: str, pair: tuple[float, float], ratio: str) -> None:
    """Print one line, times in milliseconds."""
    print(f"{what:<44}{pair[0] * 1e3:>7.2f} ms{pair[1] * 1e3:>7.2f} ms  {ratio}")


if __name__ == "__main__":
    main()

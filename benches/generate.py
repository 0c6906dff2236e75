"""Time greedy generation with SmolLM2-135M, or another file; the peer is transformers' `generate`.

    python benches/generate.py [FILE.apr] [--tokens N] [--rounds N] [--threads N] [--device cuda]

Without a file, the weights of SmolLM2-135M's shape are random. Both sides have the same weights in the same
dtype (float32 on the CPU, bfloat16 on a GPU) and the same prompt of 32 tokens, and must give the same tokens
in float32. transformers runs eagerly, its default. A time is that of a whole call: prompt, cache and, on a
GPU, our capture. The sides take turns. Figures are medians, with the fastest round beside them: two threads
that wait for each other suffer from any other program.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

import apr
from apr.convert import convert
from apr.model.decoder import Decoder
from apr.model.init import init_weights, load_arch
from apr.train.machine.device import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

PROMPT, VOCAB = 32, 49_152


def main() -> None:
    """Time both sides and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.file or Path(folder) / "random.apr")
        if options.file is None:
            random = Decoder.empty(load_arch("smollm2-135m", VOCAB), "cpu", torch.float32)
            init_weights(random, 0)
            apr.save(random.state_dict(), file, random.config.to_metadata())
        convert(file, Path(folder) / "hf")
        model = Decoder.from_apr(file, device, dtype).eval()
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=dtype).to(device).eval()
    ids = torch.arange(100, 100 + PROMPT)
    sides: dict[str, Callable[[], list[int]]] = {
        "transformers": their_side(theirs, ids.to(device), options.tokens),
        "apr": lambda: apr.generate(model, ids, max_tokens=options.tokens)[0].ids,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, list[int]] = {}
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, side in sides.items():
            started = time.perf_counter()
            results[name] = side()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    # Another continuation would be other work. In bfloat16, ties break either way.
    assert dtype != torch.float32 or results["transformers"] == results["apr"]
    print(f"{describe(device)}, torch {torch.__version__}, {options.threads} threads, {dtype}, "
          f"{PROMPT} + {options.tokens} tokens, {options.rounds} rounds")  # fmt: skip
    for name, times in seconds.items():
        median, best = statistics.median(times), min(times)
        print(f"  {name:<14} {options.tokens / median:>7.1f} tokens/s  (fastest {options.tokens / best:.1f})")
    ratios = [f(seconds["transformers"]) / f(seconds["apr"]) for f in (statistics.median, min)]
    print(f"  ratio {ratios[0]:.2f}  (fastest {ratios[1]:.2f})")


def their_side(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> Callable[[], list[int]]:
    """Return a function that generates with transformers' model."""
    model.generation_config.eos_token_id = None
    batch = ids[None]
    mask = torch.ones_like(batch)

    def generate() -> list[int]:
        out = model.generate(
            batch, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return out[0, PROMPT:].tolist()

    return generate


main()

"""Time a training step of a model's shape; the peer is transformers, in the same run.

    python benches/train.py [--arch PRESET] [--device cpu|cuda] [--batch-size N] [--seq-length T] [--steps N]
        [--compile]

Both sides have the same weights and windows. They do a forward pass, cross entropy, a backward pass,
clipping at 1.0 and fused AdamW; on CUDA with bfloat16 autocast over float32 weights. The peer is
LlamaForCausalLM or Qwen2ForCausalLM, with --compile compiled as a whole. The sides take turns; figures are
medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import torch

from apr.model.decoder import Decoder
from apr.model.init import init_weights, load_arch
from apr.train.config import PretrainConfig
from apr.train.machine.device import default_precision, describe
from apr.train.optimizer import make_optimizer
from apr.train.step import Step
from peers.decoder import transformers_model

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB = {"smollm2-135m": 49_152, "qwen2.5-0.5b": 151_936}
WARM_UP = 3


def main() -> None:
    """Time both sides and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=VOCAB, default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    shape = options.batch_size, options.seq_length + 1
    ids = torch.randint(0, VOCAB[options.arch], shape, generator=torch.Generator().manual_seed(0)).to(device)
    ours = our_model(options.arch, device)
    sides = {"apr": our_step(ours, ids, compiled=options.compile)}
    sides["transformers"] = their_step(ours, ids, compiled=options.compile)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(WARM_UP + options.steps):
        for name, step in sides.items():
            synchronize(device)
            started = time.perf_counter()
            step()
            synchronize(device)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    tokens = options.batch_size * options.seq_length
    how = ", compiled" if options.compile else ""
    print(f"{options.arch} on {describe(device)}, torch {torch.__version__}, {default_precision(device)}, "
          f"{shape[0]} x {shape[1] - 1}{how}")  # fmt: skip
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"  {name:<13} {median * 1e3:>9.1f} ms a step  {tokens / median:>10,.0f} tokens/s")
    print(f"  ratio         {medians['transformers'] / medians['apr']:.2f} x transformers")


def our_model(arch: str, device: torch.device) -> Decoder:
    """Return a model with random weights, which the peer copies."""
    model = Decoder.empty(load_arch(arch, VOCAB[arch]), device, torch.float32)
    init_weights(model, 0)
    return model


def our_step(model: Decoder, ids: torch.Tensor, *, compiled: bool) -> Callable[[], None]:
    """Return a function that does one step as `apr pretrain` does."""
    config = PretrainConfig(dataset="-", run_dir="-", mode="from-scratch", arch="smollm2-135m")
    step = Step(
        model,
        make_optimizer(model, config),
        precision=default_precision(ids.device),
        grad_clip=1.0,
        compiled=compiled,
    )

    def run() -> None:
        step.accumulate([ids], ids[:, 1:].numel())
        step.update(lr=0.0)

    return run


def their_step(ours: Decoder, ids: torch.Tensor, *, compiled: bool) -> Callable[[], None]:
    """Return a function that does the same with transformers' model."""
    model = transformers_model(ours)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    if compiled:
        model.compile()

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=default_precision(ids.device) == "bf16"):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


main()

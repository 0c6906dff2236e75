"""Time a training step of a 4 M-parameter Qwen2 on two CPU threads; the peer is a plain transformers loop.

    python benches/train_cpu.py [--steps N] [--threads N] [--compile]

Both sides have the same weights and, in each step, the same 4 windows of 128 tokens. They do a forward and
a backward pass in float32, clip gradients at 1.0 and update with the same AdamW options. The peer is the
loop that most people write: Qwen2ForCausalLM, cross entropy of its logits, `clip_grad_norm_`,
`torch.optim.AdamW`. A second peer uses torch's fused AdamW. The sides take turns in a rotating order;
figures are medians.
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
from apr.train.machine.device import describe
from apr.train.optimizer import make_optimizer
from apr.train.step import Step
from peers.decoder import transformers_model

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB, BATCH, LENGTH = 4_096, 4, 128
LR = 3e-4
WARM_UP = 5


def main() -> None:
    """Time the sides and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile our step with torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Decoder.empty(load_arch("qwen2-4m", VOCAB), "cpu", torch.float32)
    init_weights(model, 0)
    ours = "apr, compiled" if options.compile else "apr"
    sides = {
        "transformers": their_step(model, fused=False),
        "transformers, fused AdamW": their_step(model, fused=True),
        ours: our_step(model, compiled=options.compile),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    names = list(sides)
    for turn in range(WARM_UP + options.steps):
        ids = torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=generator)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            losses[name] = sides[name](ids)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    # Different losses would mean different work, and the comparison would mean nothing.
    assert max(losses.values()) - min(losses.values()) < 1e-3, losses
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{describe(torch.device('cpu'))}, torch {torch.__version__}, {parameters / 1e6:.1f} M parameters, "
          f"{BATCH} x {LENGTH}, {options.steps} steps each")  # fmt: skip
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        ratio = median / medians[ours]
        print(f"  {name:<26} {median * 1e3:>7.1f} ms a step  {BATCH * LENGTH / median:>7,.0f} tokens/s"
              + (f"  ratio {ratio:.2f}" if name != ours else ""))  # fmt: skip


def our_step(model: Decoder, *, compiled: bool) -> Callable[[torch.Tensor], float]:
    """Return a function that does one step as `apr pretrain` does."""
    config = PretrainConfig(dataset="-", run_dir="-", mode="from-scratch", arch="qwen2-4m")
    step = Step(
        model, make_optimizer(model, config), precision="fp32", grad_clip=config.grad_clip, compiled=compiled
    )

    def run(ids: torch.Tensor) -> float:
        step.accumulate([ids], BATCH * LENGTH)
        return step.update(LR).train_loss

    return run


def their_step(ours: Decoder, *, fused: bool) -> Callable[[torch.Tensor], float]:
    """Return a function that does the same with transformers' model and torch's optimizer."""
    model = transformers_model(ours)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=fused)

    def step(ids: torch.Tensor) -> float:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


main()

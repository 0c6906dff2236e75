"""Time a training step of a model's shape; the peer is transformers, compiled as well as torch allows.

    python benches/train.py [--arch PRESET] [--device cpu|cuda] [--batch-size N] [--seq-length T] [--steps N]
        [--compile] [--activation-checkpointing] [--only apr|transformers]

Both sides have the same weights and windows. They do a forward pass, cross entropy, a backward pass,
clipping at 1.0 and fused AdamW; on CUDA with bfloat16 compute over float32 weights. The peer is
LlamaForCausalLM or Qwen2ForCausalLM under autocast (`peers/decoder.py`); with --compile, one function with
the model and the loss is compiled as a whole. --activation-checkpointing is ours alone: the peer keeps all.

Each side has a process of its own, so that neither's memory or compiler settings reach the other. On a GPU
one runs after the other, several steps between two readings of the clock; the peer never waits to read its
loss, while `apr` reads it in every step, as it does in a run. On a CPU they take turns step by step. Loss and
gradient norm of the first step are compared before anything is timed; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.model.decoder import Decoder

    Step = Callable[[], tuple[float | torch.Tensor, float | torch.Tensor]]

VOCAB = {"smollm2-135m": 49_152, "qwen2.5-0.5b": 151_936}
WARM_UP = 3
# Readings of the clock on a GPU, each after --steps.
BLOCKS = 5
# Relative differences between the sides that bfloat16 explains; in float32 they are far smaller.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 2e-2


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
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--only", choices=("apr", "transformers"), help="time one side alone")
    parser.add_argument("--side", choices=("apr", "transformers"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        serve(options)
        return
    names = [options.only] if options.only else ["transformers", "apr"]
    sides: list[Side] = []
    if torch.device(options.device).type == "cuda":
        for name in names:
            sides.append(Side(name))
            for _ in range(BLOCKS):
                sides[-1].take(options.steps)
            sides[-1].close()
    else:
        sides += [Side(name) for name in names]
        for _ in range(options.steps):
            for side in sides:
                side.take(1)
        for side in sides:
            side.close()
    print_table(sides, options)


class Side:
    """A process that does steps of one side when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, *sys.argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ},
        )
        self.facts = self._answer()

    def take(self, steps: int) -> None:
        """Have it do some steps, and note the seconds of one."""
        self.seconds.append(self._ask(str(steps))["seconds"] / steps)

    def close(self) -> None:
        """End the process; `facts` then has its memory too."""
        self.facts |= self._ask("end")
        self._process.wait()

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended without an answer; what went wrong is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def print_table(sides: list[Side], options: argparse.Namespace) -> None:
    """Print what was compared and how long it took."""
    facts = sides[-1].facts
    tokens = options.batch_size * options.seq_length
    how = ", compiled" if options.compile else ""
    if options.activation_checkpointing:
        how += ", activation checkpointing (apr)"
    versions = ", ".join(dict.fromkeys(version for side in sides for version in side.facts["versions"]))
    print(
        f"{options.arch} on {facts['device']}, {versions}, {options.batch_size} x {options.seq_length}{how}"
    )
    for side in sides:
        print(
            f"  {side.name:<13} {side.median * 1e3:>9.1f} ms a step  {tokens / side.median:>10,.0f} tokens/s "
            f"{side.facts['gib']:>5.1f} GiB  first step after {side.facts['first_step']:.1f} s, "
            f"loss {side.facts['loss']:.4f}, "
            f"norm {side.facts['norm']:.4f}"
        )
    if len(sides) == 2:
        theirs, ours = sides
        print(f"  ratio         {theirs.median / ours.median:.2f} x transformers")
        for fact, tolerance in (("loss", LOSS_TOLERANCE), ("norm", NORM_TOLERANCE)):
            a, b = theirs.facts[fact], ours.facts[fact]
            # Different numbers would mean different work, and the comparison would mean nothing.
            assert abs(a - b) <= tolerance * abs(a), (fact, a, b)


# One side, in its process.


def serve(options: argparse.Namespace) -> None:
    """Do a side's steps as standard input asks for them, and answer in lines of JSON."""
    from apr.train.machine.device import default_precision, describe, peak_memory_bytes

    answers = sys.stdout
    sys.stdout = sys.stderr
    device = torch.device(options.device)
    shape = options.batch_size, options.seq_length + 1
    ids = torch.randint(0, VOCAB[options.arch], shape, generator=torch.Generator().manual_seed(0)).to(device)
    model = our_model(options.arch, device)
    synchronize(device)
    started = time.perf_counter()
    if options.side == "apr":
        recomputes = options.activation_checkpointing
        step = our_step(model, ids, compiled=options.compile, recomputes=recomputes)
    else:
        step = their_step(model, ids, compiled=options.compile)
    del model
    loss, norm = (float(number) for number in step())
    first_step = time.perf_counter() - started
    for _ in range(WARM_UP - 1):
        step()
    versions = [f"torch {torch.__version__}"]
    if options.side == "transformers":
        import transformers

        versions.append(f"transformers {transformers.__version__}")
    facts = {
        "loss": loss,
        "norm": norm,
        "first_step": first_step,
        "device": f"{describe(device)}, {default_precision(device)}",
        "versions": versions,
    }
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"gib": peak_memory_bytes(device) / 2**30}), file=answers, flush=True)
            return
        synchronize(device)
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        synchronize(device)
        print(json.dumps({"seconds": time.perf_counter() - started}), file=answers, flush=True)


def our_model(arch: str, device: torch.device) -> Decoder:
    """Return a model with random weights; the same ones in each process."""
    from apr.model.decoder import Decoder
    from apr.model.init import init_weights, load_arch

    model = Decoder.empty(load_arch(arch, VOCAB[arch]), device, torch.float32)
    init_weights(model, 0)
    return model


def our_step(model: Decoder, ids: torch.Tensor, *, compiled: bool, recomputes: bool) -> Step:
    """Return a function that does one step as `apr pretrain` does, and returns loss and gradient norm."""
    from apr.train.config import PretrainConfig
    from apr.train.machine.device import default_precision
    from apr.train.optimizer import make_optimizer
    from apr.train.step import Step

    config = PretrainConfig(dataset="-", run_dir="-", mode="from-scratch", arch="smollm2-135m")
    step = Step(
        model,
        make_optimizer(model, config),
        precision=default_precision(ids.device),
        grad_clip=1.0,
        compiled=compiled,
        recomputes=recomputes,
    )

    def run() -> tuple[float, float]:
        step.accumulate([ids], ids[:, 1:].numel())
        outcome = step.update(lr=0.0)
        return outcome.train_loss, outcome.grad_norm

    return run


def their_step(ours: Decoder, ids: torch.Tensor, *, compiled: bool) -> Step:
    """Return a function that does the same with transformers' model."""
    from apr.train.machine.device import default_precision
    from peers.decoder import attention_kernels, transformers_model

    model = transformers_model(ours)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    bf16 = default_precision(ids.device) == "bf16"
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def forward() -> torch.Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
            logits = model(input_ids=inputs, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)

    if compiled:
        forward = torch.compile(forward)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        with attention_kernels():
            loss = forward()
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    return step


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


main()

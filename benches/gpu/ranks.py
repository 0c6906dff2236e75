"""Several GPUs of one host: what they compute is checked, then how fast they are beside one of them.

    python benches/gpu/ranks.py [--gpus N] [--only check|speed|sharded] [--arch PRESET]

N is 2 or 4; by default, as many as there are. Each row of the table has one GPU's figure beside it, from the
same machine and run. NVLink multicast stays off. The whole takes less than eight minutes.

Checked first, with the command itself on a small model: a `--deterministic` run writes the same bytes on each
number of GPUs, also stopped on N and resumed on half of them, and the held-out loss of the same weights is
the same bits without that flag. Then steps are timed as a run does them, with the exchange of signals and
times between ranks: medians of blocks of steps. On 4 GPUs, a model of 7.6 B parameters is divided among them
(--shard-model), and its memory stands beside the estimate of --plan.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from apr.train.parallel.world import World

WARM_UP, BLOCKS, STEPS = 5, 5, 10
VOCAB = 151_936
# The sizes of Qwen2.5-7B.
LARGE, LARGE_BATCH, LARGE_LENGTH = "qwen2.5-7b", 2, 4096
LARGE_SIZES = {
    "architecture": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "num_layers": 28,
    "num_heads": 28,
    "num_kv_heads": 4,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


class Case(NamedTuple):
    """What is timed."""

    batch: int
    """Windows of a rank."""
    length: int
    deterministic: bool = False
    """Whether kernels are deterministic."""
    tree: bool = False
    """Whether gradients are added in the order of the tree."""


CASES = {
    "16 x 1024": Case(16, 1024),
    "8 x 512": Case(8, 512),
    "16 x 1024, deterministic kernels": Case(16, 1024, deterministic=True),
    "16 x 1024, deterministic, fixed tree": Case(16, 1024, deterministic=True, tree=True),
}
# Least speed relative to one GPU; of the fixed tree, relative to the same ranks without it.
REQUIRED = {
    ("16 x 1024", 2): 1.95,
    ("16 x 1024", 4): 3.85,
    ("8 x 512", 2): 1.85,
    ("8 x 512", 4): 3.5,
    ("16 x 1024, deterministic, fixed tree", 2): 0.97,
    ("16 x 1024, deterministic, fixed tree", 4): 0.88,
}


def main() -> None:
    """Check, time, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, choices=(2, 4), default=torch.cuda.device_count())
    parser.add_argument("--only", choices=("check", "speed", "sharded"))
    parser.add_argument("--arch", default="qwen2.5-0.5b")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options)
        return
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    sizes = [1, 2, 4][: options.gpus.bit_length()]
    print(f"{options.gpus} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        if options.only in {None, "check"}:
            check(Path(directory), sizes)
        if options.only in {None, "sharded"} and options.gpus == 4:
            measured(Path(directory), 4, LARGE)
        if options.only in {None, "speed"}:
            results = {size: measured(Path(directory), size, options.arch) for size in sizes}
            print_table(results, options.arch)


# What the ranks compute.


def check(directory: Path, sizes: list[int]) -> None:
    """Train a small model on each number of GPUs, and compare what the runs wrote."""
    write_shards(directory / "shards")
    common = [
        *("--mode", "from-scratch", "--arch", "qwen2-4m", "--dataset", str(directory / "shards")),
        *("--num-steps", "20", "--eval-every", "10", "--batch-size", "4", "--global-batch", "16"),
        *("--seq-length", "256", "--val-tokens", "100000", "--device", "cuda", "--compile"),
        "--force-under-provisioned",
    ]
    for size in sizes:
        train(size, [*common, "--run-dir", str(directory / f"fast-{size}")])
        train(size, [*common, "--deterministic", "--run-dir", str(directory / f"tree-{size}")])
    largest = sizes[-1]
    stopped = ["--run-dir", str(directory / "stopped")]
    # Stopped between two evaluations by its number of steps, which is the same as by a signal.
    train(largest, [*common, "--deterministic", *stopped, "--save-every", "7", "--max-minutes", "60"], stop=7)
    train(largest // 2, [*stopped, "--resume"])
    first = {size: json.loads((directory / f"fast-{size}/train.jsonl").open().readline()) for size in sizes}
    losses = {record["val_loss"] for record in first.values()}
    verdict = "the same bits" if len(losses) == 1 else f"DIFFERENT: {losses}"
    print(f"held-out loss of the same weights on {sizes} GPUs: {verdict}", flush=True)
    runs = {f"on {size}": directory / f"tree-{size}" for size in sizes}
    runs[f"stopped on {largest}, resumed on {largest // 2}"] = directory / "stopped"
    expected = epochs(runs["on 1"])
    for name, run in runs.items():
        same = epochs(run) == expected
        print(f"  --deterministic, {name}: {'the same bytes' if same else 'DIFFERENT BYTES'}", flush=True)
    alone, shared = (step_losses(directory / f"fast-{size}") for size in (1, largest))
    worst = max(abs(a - b) / a for a, b in zip(alone, shared, strict=True))
    print(f"  bf16 losses of 20 steps on {largest} and on 1: largest difference {worst:.1e}", flush=True)


def write_shards(directory: Path) -> None:
    """Write ids as frequent as words are: others are refused as random."""
    ids = (np.random.default_rng(0).zipf(1.3, 2_000_000) % 1000).astype("<u4")
    directory.mkdir()
    (directory / "shard-00000.bin").write_bytes(ids.tobytes())
    facts = {"schema": "pretokenize-bin-v1", "shard_count": 1, "total_tokens": len(ids), "vocab_size": 1000}
    (directory / "manifest.json").write_text(json.dumps(facts))


def train(size: int, flags: list[str], *, stop: int | None = None) -> None:
    """Run `apr pretrain` on so many GPUs; `stop`: SIGTERM once so many steps are recorded."""
    command = [sys.executable, "-m", "apr", "pretrain", *flags]
    if size > 1:
        command += ["--gpus", str(size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = Path(flags[flags.index("--run-dir") + 1])
    while stop is not None and process.poll() is None:
        metrics = run / "train.jsonl"
        if metrics.exists() and metrics.read_text().count("train_loss") >= stop:
            process.terminate()
            break
        time.sleep(0.01)
    out, _ = process.communicate()
    if process.returncode != (0 if stop is None else 143):
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{out}")


def epochs(run: Path) -> dict[str, bytes]:
    """Return the bytes of a run's checkpoints."""
    return {path.name: path.read_bytes() for path in run.glob("ckpt/epoch-*.apr")}


def step_losses(run: Path) -> list[float]:
    """Return the training losses of a run."""
    records = [json.loads(line) for line in (run / "train.jsonl").open()]
    return [record["train_loss"] for record in records if "train_loss" in record]


# How fast they are.


def measured(directory: Path, size: int, arch: str) -> dict[str, Any]:
    """Time all cases on so many GPUs."""
    out = directory / f"speed-{size}.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    subprocess.run([*command, __file__, "--serve", str(out), "--arch", arch], check=True)
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def serve(options: argparse.Namespace) -> None:
    """Time all cases as one of the ranks; the first one writes the results."""
    from apr.train.machine.settings import prefer_expandable_segments
    from apr.train.parallel.world import joined

    prefer_expandable_segments()
    with joined(300) as world:
        if options.arch == LARGE:
            time_sharded(world)
            options.serve.write_text("{}")
            return
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
        results = {}
        for name, case in CASES.items():
            if case.tree and world.size == 1:
                continue  # one micro-batch has no tree
            torch.cuda.reset_peak_memory_stats(device)
            seconds, loss, norm = steps(options.arch, world, case)
            gib = world.gather([torch.cuda.max_memory_reserved(device) / 2**30])
            tokens = case.batch * case.length * world.size
            results[name] = {"seconds": seconds, "tokens_per_second": tokens / seconds, "loss": loss}
            results[name] |= {"norm": norm, "gib": [of_rank for (of_rank,) in gib]}
            gc.collect()
            torch.cuda.empty_cache()
            if world.leads:
                print(f"  {world.size} GPUs, {name}: {seconds * 1e3:.1f} ms", flush=True)
        if world.leads:
            options.serve.write_text(json.dumps(results))


def time_sharded(world: World) -> None:
    """Time steps of a model of 7.6 B parameters that is divided among the ranks, and print its figures."""
    from apr.model.config import ModelConfig
    from apr.train.config import PretrainConfig
    from apr.train.machine.settings import training_settings
    from apr.train.optimizer import make_optimizer
    from apr.train.parallel.shard import own, sharded_model
    from apr.train.start.needs import flops_per_token, memory_bytes, parameter_groups
    from apr.train.step import Step

    device, model_config = torch.device("cuda", world.local_rank), ModelConfig.from_metadata(LARGE_SIZES)
    asked = PretrainConfig(
        mode="from-scratch", arch="x", dataset=Path("x"), run_dir=Path("x"), batch_size=LARGE_BATCH,
        seq_length=LARGE_LENGTH, shard_model=True, activation_checkpointing=True,
    )  # fmt: skip
    config = asked.over_ranks(world.size).resolved("bf16", compiled=True)
    with training_settings(device, deterministic=False):
        model = sharded_model(model_config, device, world.size, "bf16")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    own(parameter).fill_(1.0)
                else:
                    own(parameter).normal_(0.0, 0.0 if name.endswith("bias") else 0.02)
        step = Step(
            model,
            make_optimizer(model, config),
            precision="bf16",
            grad_clip=1.0,
            compiled=True,
            recomputes=True,
            world=world,
        )
        shape = (LARGE_BATCH, LARGE_LENGTH + 1)
        ids = torch.from_numpy(np.random.default_rng(world.rank).integers(0, VOCAB, shape)).to(device)
        seconds = []
        for _ in range(3 + BLOCKS):
            started = time.perf_counter()
            step.accumulate([ids], config.tokens_per_step)
            outcome = step.update(1e-5)
            seconds.append(max(s for (s,) in world.gather([time.perf_counter() - started])))
        gib = [m / 2**30 for (m,) in world.gather([torch.cuda.max_memory_reserved(device)])]
        groups, median = parameter_groups(model_config), statistics.median(seconds[3:])
        speed = config.tokens_per_step / median
        mfu = speed * flops_per_token(model_config, groups, LARGE_LENGTH) / (world.size * 989e12)
        if world.leads:
            print(
                f"{LARGE}, {sum(groups.values()) / 1e9:.1f} B parameters, "
                f"{LARGE_BATCH} x {LARGE_LENGTH} a rank, --shard-model, activation checkpointing: "
                f"{median:.3f} s a step, {speed:,.0f} tokens/s, "
                f"{mfu:.1%} of 989 TFLOP/s (required: 36 %), loss {outcome.train_loss:.3f}\n"
                f"  GiB a rank: {', '.join(f'{one:.1f}' for one in gib)}; the estimate is "
                f"{memory_bytes(config, model_config, device) / 2**30:.1f}",
                flush=True,
            )


def steps(arch: str, world: World, case: Case) -> tuple[float, float, float]:
    """Return the median seconds of a step on the slowest rank, and loss and norm of the first one."""
    from apr.model.decoder import Decoder
    from apr.model.init import init_weights, load_arch
    from apr.train.config import PretrainConfig
    from apr.train.machine.settings import training_settings
    from apr.train.optimizer import make_optimizer
    from apr.train.step import Step

    device, batch, length = torch.device("cuda", world.local_rank), case.batch, case.length
    with training_settings(device, deterministic=case.deterministic):
        model = Decoder.empty(load_arch(arch, VOCAB), device, torch.float32)
        init_weights(model, 1)
        config = PretrainConfig(mode="from-scratch", arch=arch, dataset=Path("x"), run_dir=Path("x"))
        step = Step(
            model,
            make_optimizer(model, config),
            precision="bf16",
            grad_clip=1.0,
            compiled=True,
            world=world,
            fixed_order=case.tree,
        )
        ids = torch.from_numpy(np.random.default_rng(world.rank).integers(0, VOCAB, (batch, length + 1)))
        ids = ids.to(device)
        tokens = batch * length * world.size

        def once() -> tuple[float, float]:
            step.accumulate([ids], tokens)
            outcome = step.update(1e-5)
            # As the loop does: the slowest rank's time, and whether a signal arrived anywhere.
            world.gather([0.0])
            world.gather([0.0, 0.0])
            return outcome.train_loss, outcome.grad_norm

        first = once()
        for _ in range(WARM_UP):
            once()
        seconds = []
        for _ in range(BLOCKS):
            started = time.perf_counter()
            for _ in range(STEPS):
                once()
            seconds.append(max(s for (s,) in world.gather([(time.perf_counter() - started) / STEPS])))
    return statistics.median(seconds), *first


def print_table(results: dict[int, dict[str, Any]], arch: str) -> None:
    """Print each case beside one GPU's figure, and whether it is as fast as required."""
    print(f"\n| {arch}, bf16, compiled, a rank | GPUs | step | tokens/s | ratio | required | GiB a rank |")
    print("|---|---|---|---|---|---|---|")
    for size, cases in results.items():
        for name, case in cases.items():
            base = results[1].get(name, {}).get("tokens_per_second")
            what = " x one GPU"
            if "fixed tree" in name:
                base = cases["16 x 1024, deterministic kernels"]["tokens_per_second"]
                what = " x without the tree"
            ratio = case["tokens_per_second"] / base
            compared = "" if size == 1 else f"{ratio:.3f}{what}"
            verdict = ""
            if (required := REQUIRED.get((name, size))) is not None:
                verdict = f"{required} {'met' if ratio >= required else 'NOT MET'}"
            print(
                f"| {name} | {size} | {case['seconds'] * 1e3:.1f} ms | {case['tokens_per_second']:,.0f} | "
                f"{compared} | {verdict} | {', '.join(f'{gib:.1f}' for gib in case['gib'])} |"
            )


if __name__ == "__main__":
    if shutil.which("nvidia-smi") is None and "--help" not in sys.argv and "-h" not in sys.argv:
        sys.exit("benches/gpu/ranks.py needs a machine with 2 or 4 GPUs")
    main()

"""Compare what --plan predicts with what the run then shows, on one GPU.

    python benches/gpu/plan.py [--only N] [--json]

For four shapes: the peak of reserved memory and the seconds of a step, from `apr pretrain --plan` and from a
run of the same options, each in a process of its own. The goal is 8 % of memory and 10 % of time. The first
run also saves a checkpoint between two evaluations: how much longer the step after it took than the median.

Weights are random, ids too. Everything is written to memory (/dev/shm) where there is some, so that the disk
decides nothing; the checkpoint is written and read back all the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# Preset, vocabulary, windows and tokens of a window.
SHAPES = [
    ("qwen2.5-0.5b", 151_936, 8, 512),
    ("qwen2.5-0.5b", 151_936, 16, 1024),
    ("qwen2.5-0.5b", 151_936, 32, 1024),
    ("smollm2-135m", 49_152, 64, 1024),
]
MEMORY_GOAL, TIME_GOAL, DELAY_GOAL = 0.08, 0.10, 0.3
STEPS, SAVED_STEP, SAVING_STEPS = 20, 20, 38
TOKENS = 2_000_000


def main() -> None:
    """Plan and run each shape, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, help="number of the only shape to run, from 0")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    options = parser.parse_args()
    started = time.perf_counter()
    shapes = SHAPES if options.only is None else [SHAPES[options.only]]
    folder = Path(tempfile.mkdtemp(prefix="apr-plan-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        figures = [measure(folder, *shape, saves=number == 0) for number, shape in enumerate(shapes)]
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for row in figures:
        memory, seconds = (row["shown"][key] / row["planned"][key] - 1 for key in ("bytes", "seconds"))
        print(
            f"{row['shape']:<24} memory {row['planned']['bytes'] / 2**30:>5.1f} planned, "
            f"{row['shown']['bytes'] / 2**30:>5.1f} GiB shown ({memory:+.1%}, goal {MEMORY_GOAL:.0%}; "
            f"estimated {row['estimated_bytes'] / 2**30:.1f})   "
            f"step {row['planned']['seconds'] * 1e3:>6.1f} planned, "
            f"{row['shown']['seconds'] * 1e3:>6.1f} ms shown ({seconds:+.1%}, goal {TIME_GOAL:.0%})"
        )
        if row["delay"] is not None:
            print(
                f"{'':<24} the step after a checkpoint: {row['delay']:+.3f} s (goal {DELAY_GOAL}); the run "
                f"took {row['run_seconds']:.1f} s, its plan {row['plan_seconds']:.1f} s"
            )
    print(f"{time.perf_counter() - started:.0f} s in all")


def measure(folder: Path, arch: str, vocab: int, windows: int, length: int, *, saves: bool) -> dict[str, Any]:
    """Plan and run a shape, and return the figures of both."""
    steps = SAVING_STEPS if saves else STEPS
    arguments = [
        *("--init", init_file(folder, arch, vocab), "--dataset", shards(folder, vocab)),
        *("--run-dir", folder / "run", "--batch-size", windows, "--seq-length", length),
        *("--num-steps", steps, "--eval-every", steps, "--val-tokens", 65_536, "--keep", 1),
        *("--allow-shard-cycle", "--compile", "--device", "cuda", "--json"),
    ]
    started = time.perf_counter()
    planned = json.loads(apr([*arguments, "--plan"]))
    plan_seconds = time.perf_counter() - started
    started = time.perf_counter()
    lines = apr([*arguments, *(["--save-every", SAVED_STEP] if saves else [])]).splitlines()
    run_seconds = time.perf_counter() - started
    shutil.rmtree(folder / "run")
    events = [json.loads(line) for line in lines]
    result = events[-1]
    assert result["status"] == "BUDGET_SPENT", result["detail"]
    ends = [event["wall_seconds"] for event in events if event["event"] == "step"]
    gaps = np.diff(ends)
    return {
        "shape": f"{arch} {windows} x {length}",
        "planned": {"bytes": planned["peak_memory_bytes"], "seconds": planned["seconds_per_step"]},
        "estimated_bytes": planned["memory_bytes"],
        "shown": {
            "bytes": result["peak_memory_bytes"],
            "seconds": windows * length / result["tokens_per_second"],
        },
        # Between the ends of the step before the save and of the one after it.
        "delay": gaps[SAVED_STEP - 1] - statistics.median(gaps) if saves else None,
        "plan_seconds": plan_seconds,
        "run_seconds": run_seconds,
    }


def apr(arguments: list[Any]) -> str:
    """Run `apr pretrain`, and return its standard output."""
    command = [sys.executable, "-m", "apr", "pretrain", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def init_file(folder: Path, arch: str, vocab: int) -> Path:
    """Return a file with random weights; written once for each preset."""
    from apr.model.decoder import Decoder
    from apr.model.init import init_weights, load_arch

    path = folder / f"{arch}.apr"
    if not path.exists():
        import torch

        model = Decoder.empty(load_arch(arch, vocab), "cpu", torch.float32)
        init_weights(model, 0)
        model.save_apr(path)
    return path


def shards(folder: Path, vocab: int) -> Path:
    """Return a shard directory of random ids; written once for each vocabulary."""
    path = folder / f"shards-{vocab}"
    if not path.exists():
        path.mkdir()
        # Some far more frequent than others, as in text: a corpus of equally frequent ids is refused.
        ids = vocab * np.random.default_rng(0).random(TOKENS) ** 4
        (path / "shard-00000.bin").write_bytes(ids.astype("<u4").tobytes())
        facts = {
            "schema": "pretokenize-bin-v1",
            "shard_count": 1,
            "total_tokens": TOKENS,
            "vocab_size": vocab,
        }
        (path / "manifest.json").write_text(json.dumps(facts))
    return path


if __name__ == "__main__":
    main()

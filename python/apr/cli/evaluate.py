"""`apr evaluate`: the loss of a model file on token shards."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.files import json_text
from apr.options import Alias
from apr.train.config import Precision


@dataclass(frozen=True)
class Command:
    """Mean cross entropy of a model file on token shards, the number that `apr pretrain` reports.

    Sequence length, tokens and held-out range are those in a checkpoint's metadata where no flag is given.
    Text that the checkpoint was trained on is called so.

    Example: apr evaluate runs/first/ckpt/epoch-004.apr --dataset shards
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The model."""
    dataset: Annotated[Path, Alias("--shards-dir")]
    """Shard directory."""
    held_out: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only what training on this directory holds out; refused where the model was trained on all of it."""
    seq_length: int | None = None
    """Tokens in a window (default: the checkpoint's, else 1024 or as many as the model has positions)."""
    val_tokens: int | None = None
    """Tokens to take at most (default: the checkpoint's, else 262144)."""
    batch_size: int = 1
    """Windows at a time; changes only speed and memory."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision | None = None
    """bf16 (default on CUDA) or fp32 (default on the CPU)."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Evaluate, and print the loss."""
        from apr.train.evaluate_file import WORDS, evaluate_file
        from apr.train.record.report import Report

        with Report(sys.stderr) as report:
            made, what = evaluate_file(
                self.file,
                self.dataset,
                held_out=self.held_out,
                seq_length=self.seq_length,
                val_tokens=self.val_tokens,
                batch_size=self.batch_size,
                device=self.device,
                precision=self.precision,
                on_progress=lambda done, total: report.progress(
                    f"evaluation: {done}/{total} windows", done, total
                ),
            )
        if self.json:
            print(json_text({"file": str(self.file), **asdict(made), "val_ppl": made.val_ppl, **what}))
        else:
            words = ", ".join(f"{key} {value}" for key, value in what.items() if key != "text")
            print(f"{self.file}: {WORDS[what['text']]} {made.val_loss:.4f}, perplexity {made.val_ppl:.2f}, "
                  f"{made.val_tokens:,} tokens ({words})")  # fmt: skip
        return 0

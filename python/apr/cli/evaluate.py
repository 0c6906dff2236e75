"""`apr evaluate`: measure the loss of a model file on token shards."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.errors import UsageError
from apr.files import json_text
from apr.options import Alias, Unset
from apr.plurals import counted
from apr.train.config import Precision


@dataclass(frozen=True)
class Command:
    """Measure the mean cross entropy of a model file on token shards, as `apr pretrain` reports it.

    Flags that are not given default to the values in a checkpoint's metadata. The output says whether the
    model was trained on the text, was trained with that text held out, or neither.

    Example: apr evaluate runs/first/ckpt/epoch-004.apr --dataset shards
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The model file."""
    dataset: Annotated[Path, Alias("--shards-dir")]
    """Directory of token shards."""
    held_out: bool = False
    """Evaluate only the tokens that a training run on this directory sets aside. It is an error if the model
    was trained on all of them."""
    seq_length: Annotated[
        int | None,
        Unset("the value in the checkpoint, or else 1024, or less if the model has fewer positions"),
    ] = None
    """Tokens per window."""
    val_tokens: Annotated[int | None, Unset("the value in the checkpoint, or else 262144")] = None
    """Maximum number of tokens to evaluate."""
    batch_size: Annotated[int | None, Unset("none")] = None
    """Has no effect: windows are computed in groups of a fixed size, so that the loss is always the same.
    Kept for scripts."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    precision: Annotated[Precision | None, Unset("bf16 on CUDA, fp32 on the CPU")] = None
    """Number format of the computation."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Evaluate the model and print its loss."""
        # Imported here, because it loads torch, which --help does without.
        from apr.train.file_evaluation import LOSS_NAMES, evaluate_file
        from apr.train.record.report import Report

        if self.batch_size is not None:
            if self.batch_size < 1:
                raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")
            print("note: --batch-size has no effect; the loss is the same for every size", file=sys.stderr)

        with Report(sys.stderr) as report:
            result, facts = evaluate_file(
                self.file,
                self.dataset,
                held_out=self.held_out,
                seq_length=self.seq_length,
                val_tokens=self.val_tokens,
                device=self.device,
                precision=self.precision,
                on_progress=lambda done, total: report.progress(
                    f"evaluation: {done}/{total} windows", done, total
                ),
            )
        if self.json:
            print(json_text({"file": str(self.file), **asdict(result), "val_ppl": result.val_ppl, **facts}))
        else:
            if facts["tokenizer"] != "the same":
                print(f"note: {facts['tokenizer']}", file=sys.stderr)
            apart = ("text", "tokenizer")
            conditions = ", ".join(f"{key} {value}" for key, value in facts.items() if key not in apart)
            print(
                f"{self.file}: {LOSS_NAMES[facts['text']]} {result.val_loss:.4f}, "
                f"perplexity {result.val_ppl:.2f}, {counted(result.val_tokens, 'token')} ({conditions})"
            )
        return 0

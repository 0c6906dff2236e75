"""A trial of a run in a process of its own, which measures how much of a GPU's memory it holds.

Nothing of it stays in the process that asks: no weight, no random number, no reserved memory, and no GPU that
an exhausted memory left in a bad state.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import torch

from apr.errors import RefusedError
from apr.model.decoder import Decoder
from apr.train.evaluation import group_size
from apr.train.loss import token_losses
from apr.train.machine.device import computing, peak_memory_bytes
from apr.train.machine.out_of_memory import is_out_of_memory
from apr.train.machine.settings import prefer_expandable_segments, training_settings
from apr.train.optimizer import make_optimizer
from apr.train.step import Step

if TYPE_CHECKING:
    from apr.model.config import ModelConfig
    from apr.train.config import ResolvedConfig

_STEPS = 2


def peak_of(config: ResolvedConfig, model: ModelConfig, device: torch.device) -> int | None:
    """Return the most memory that an evaluation and steps of a run hold, in bytes; None if it runs out.

    Raises:
        RefusedError: the trial failed for another reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((config, model, device)),
        # A notebook may have changed its own path only.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    try:
        peak: int | None = json.loads(done.stdout)["peak"]
    except (ValueError, KeyError):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise RefusedError(
            f"--micro-batch auto: the trial of {config.batch_size} at a time failed ({lines[-1]}); use "
            "--micro-batch with a number"
        ) from None
    return peak


def _hold_everything(config: ResolvedConfig, sizes: ModelConfig, device: torch.device) -> None:
    """Do what a run does in the order of a run, on a model of zeros: the memory is the same."""
    model = Decoder.empty(sizes, device, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    step = Step(
        model,
        make_optimizer(model, config),
        precision=config.precision,
        grad_clip=config.grad_clip,
        compiled=config.compile,
        recomputes=config.activation_checkpointing,
    )

    def evaluate() -> None:
        group = torch.randint(
            sizes.vocab_size, (group_size(config.seq_length, device), config.seq_length + 1)
        )
        with torch.no_grad(), computing(device, config.precision):
            token_losses(model, group.to(device)).sum().item()

    evaluate()
    ids = torch.randint(sizes.vocab_size, (config.batch_size, config.seq_length + 1))
    for _ in range(_STEPS):
        # Two of several: the third adds nothing to what the second one holds.
        step.accumulate([ids] * min(config.grad_accum, 2), config.tokens_per_step)
        step.update(lr=0.0)
    evaluate()


def _main() -> None:
    # Written by `peak_of`, on the other side of the pipe.
    config, sizes, device = pickle.load(sys.stdin.buffer)  # noqa: S301
    answers, sys.stdout = sys.stdout, sys.stderr
    prefer_expandable_segments()
    peak = None
    try:
        with training_settings(device, deterministic=config.deterministic):
            _hold_everything(config, sizes, device)
        peak = peak_memory_bytes(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    print(json.dumps({"peak": peak}), file=answers)


if __name__ == "__main__":
    _main()

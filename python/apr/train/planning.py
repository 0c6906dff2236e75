"""What a run would do, and how long it would take: measured, with nothing trained that is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apr.train import rundir
from apr.train.device import computing
from apr.train.loss import token_losses
from apr.train.optimizer import make_optimizer
from apr.train.preflight import Prepared, prepare
from apr.train.report import clock
from apr.train.step import Step

if TYPE_CHECKING:
    from apr.model.decoder import Decoder
    from apr.train.config import PretrainConfig


@dataclass(frozen=True)
class Plan:
    """A run that may start, with its measured speed."""

    prepared: Prepared
    seconds_per_step: float
    seconds_per_evaluation: float

    @property
    def seconds(self) -> float:
        """Of all steps and evaluations, without loading and checkpoints."""
        steps = self.prepared.config.num_steps * self.seconds_per_step
        return steps + (self.prepared.config.epochs + 1) * self.seconds_per_evaluation

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        made, config = self.prepared, self.prepared.config
        return {
            "device": str(made.device),
            "precision": made.precision,
            "parameters": made.parameters,
            "num_steps": config.num_steps,
            "tokens_per_step": config.tokens_per_step,
            "training_windows": len(made.split.train),
            "held_out": made.split.what,
            "val_tokens": made.val_tokens,
            "epochs": config.epochs,
            "checkpoint_bytes": made.needs.checkpoint_bytes,
            "memory_bytes": made.needs.memory_bytes,
            "seconds_per_step": self.seconds_per_step,
            "seconds_per_evaluation": self.seconds_per_evaluation,
            "seconds": self.seconds,
            "notes": list(made.notes),
        }

    def __str__(self) -> str:
        speed = self.prepared.config.tokens_per_step / self.seconds_per_step
        return "\n".join(
            [
                *summary(self.prepared),
                f"speed: {self.seconds_per_step:.2f} s a step ({speed:,.0f} tokens/s), "
                f"{self.seconds_per_evaluation:.1f} s an evaluation (measured just now)",
                f"in all: about {clock(self.seconds)}",
            ]
        )


def plan(config: PretrainConfig) -> Plan:
    """Check everything, measure one step and one batch of evaluation; train nothing.

    Raises:
        AprError, OSError, RefusedError: as `prepare`.
    """
    if config.resume:
        rundir.check_free(config)
        config = rundir.as_before(config)
    prepared = prepare(config)
    model = prepared.build_model()
    step = _measure_step(prepared, model)
    return Plan(prepared, step, _measure_evaluation(prepared, model))


def summary(prepared: Prepared) -> list[str]:
    """What is trained, on what and where, a line each."""
    config, model, train = prepared.config, prepared.model_config, prepared.split.train
    start = f"from {config.init}" if config.init else f"from scratch, seed {config.seed}"
    return [
        f"model: {model.family}, {prepared.parameters / 1e6:.1f} M parameters, {model.num_layers} layers, "
        f"vocabulary {model.vocab_size:,}, {start}",
        f"train: {len(train):,} windows of {config.seq_length} tokens from {config.dataset}",
        f"held out: {prepared.split.what}; {prepared.val_tokens:,} tokens an evaluation",
        f"steps: {config.num_steps} of {config.tokens_per_step:,} tokens, peak lr {config.lr:g}, "
        f"warm-up {config.warmup_steps}; {config.epochs} epochs of {config.steps_per_epoch} steps",
        f"needs: about {prepared.needs.memory_bytes / 2**30:.1f} GiB of memory, "
        f"{prepared.needs.checkpoint_bytes / 1e9:.2f} GB a checkpoint",
        *prepared.notes,
    ]


def _measure_step(prepared: Prepared, model: Decoder) -> float:
    """The last of three steps, micro-batches scaled up from one; in the first things are compiled."""
    config = prepared.config
    step = Step(
        model,
        make_optimizer(model, config),
        precision=prepared.precision,
        grad_clip=config.grad_clip,
        compiled=config.compile,
    )
    batch = _batch(prepared, config.batch_size)
    seconds = 0.0
    for _ in range(3):
        started = _now(prepared.device)
        step.accumulate([batch], config.tokens_per_step)
        computed = _now(prepared.device)
        step.update(lr=0.0)
        seconds = (computed - started) * config.grad_accum + _now(prepared.device) - computed
    return seconds


def _measure_evaluation(prepared: Prepared, model: Decoder) -> float:
    batch = _batch(prepared, min(prepared.config.batch_size, len(prepared.split.train)))
    started = _now(prepared.device)
    with torch.no_grad(), computing(prepared.device, prepared.precision):
        token_losses(model, batch)
    seconds = _now(prepared.device) - started
    return seconds * prepared.val_tokens / (len(batch) * prepared.config.seq_length)


def _batch(prepared: Prepared, windows: int) -> torch.Tensor:
    indices = np.arange(windows) % len(prepared.split.train)
    return torch.from_numpy(prepared.split.train.batch(indices)).to(prepared.device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

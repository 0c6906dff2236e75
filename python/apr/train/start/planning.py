"""What a run would do and how long it would take, measured without keeping anything that is trained."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.filesize import decimal

from apr.duration import format_duration
from apr.errors import RefusedError
from apr.plurals import counted
from apr.train.checkpoint.probe import checkpoint_seconds
from apr.train.evaluation import group_size
from apr.train.loss import token_losses
from apr.train.machine.device import computing, peak_memory_bytes, reset_peak_memory
from apr.train.machine.out_of_memory import is_out_of_memory, refusing_a_model_too_large
from apr.train.machine.settings import prefer_expandable_segments, training_settings
from apr.train.optimizer import make_optimizer
from apr.train.parallel.shard import reshard
from apr.train.parallel.world import World, joined
from apr.train.start.fitting import check_same_micro_batch, out_of_memory
from apr.train.start.needs import nearest_existing
from apr.train.start.preflight import prepare
from apr.train.step import Step

if TYPE_CHECKING:
    from apr.model.decoder import Decoder
    from apr.train.config import PretrainConfig
    from apr.train.prepared import Prepared

# The first step compiles, captures and allocates, the second may still choose kernels.
_WARM_UP_STEPS, _MEASURED_STEPS = 2, 5


@dataclass(frozen=True)
class Plan:
    """A run that may start, with its measured speed."""

    prepared: Prepared
    seconds_per_step: float
    seconds_per_evaluation: float
    seconds_per_checkpoint: float
    peak_memory_bytes: int
    """The most memory that was held during the measured steps and evaluations, by the rank that held most:
    reserved on a GPU. On a CPU, the resident memory of the process, and the copy for a checkpoint."""

    @property
    def seconds(self) -> float:
        """Seconds that the rest of the run takes, as if checkpoints did not overlap with steps."""
        config, done = self.prepared.config, self.steps_done
        return (
            (config.num_steps - done) * self.seconds_per_step
            + self.evaluations * self.seconds_per_evaluation
            + config.evaluations_after(done) * self.seconds_per_checkpoint
        )

    @property
    def evaluations(self) -> int:
        """Number of evaluations that are left. A new run also evaluates before its first step."""
        return self.prepared.config.evaluations_after(self.steps_done) + (self.steps_done == 0)

    @property
    def evaluation_share(self) -> float:
        """The evaluations' share of the time that is left; 0 if nothing is."""
        return self.evaluations * self.seconds_per_evaluation / self.seconds if self.seconds else 0.0

    @property
    def steps_done(self) -> int:
        """Number of steps in the checkpoint that the run resumes from; 0 for a new run."""
        point = self.prepared.resume_point
        return 0 if point is None or point.last is None else point.last.step

    @property
    def data_epochs(self) -> float:
        """Number of passes over the training windows."""
        config = self.prepared.config
        return config.num_steps * config.windows_per_step / len(self.prepared.split.train)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values: sizes in bytes, times in seconds."""
        prepared, config, needs = self.prepared, self.prepared.config, self.prepared.needs
        return {
            "mode": config.mode,
            "architecture": prepared.model_config.to_metadata(),
            "parameters": prepared.parameters,
            "parameter_groups": needs.groups,
            "device": str(prepared.device),
            "ranks": prepared.world.size,
            "precision": config.precision,
            "num_steps": config.num_steps,
            "steps_done": self.steps_done,
            "micro_batch": config.batch_size,
            "grad_accum": config.grad_accum,
            "tokens_per_step": config.tokens_per_step,
            "tokens": config.num_steps * config.tokens_per_step,
            "training_windows": len(prepared.split.train),
            "training_tokens": len(prepared.split.train) * config.seq_length,
            "data_epochs": round(self.data_epochs, 4),
            "held_out": prepared.split.description,
            "val_tokens": prepared.val_tokens,
            "eval_every": config.eval_every,
            "evaluations": self.evaluations,
            "evaluation_share": round(self.evaluation_share, 4),
            "lr": config.lr,
            "warmup_steps": config.warmup_steps,
            "target_val_loss": config.target_val_loss,
            "memory_bytes": needs.memory_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "free_memory_bytes": needs.free_memory_bytes,
            "checkpoint_bytes": needs.checkpoint_bytes,
            "disk_bytes": needs.disk_bytes,
            "free_disk_bytes": needs.free_disk_bytes,
            "seconds_per_step": self.seconds_per_step,
            "tokens_per_second": config.tokens_per_step / self.seconds_per_step,
            "seconds_per_evaluation": self.seconds_per_evaluation,
            "seconds_per_checkpoint": self.seconds_per_checkpoint,
            "seconds": self.seconds,
            "notes": list(prepared.notes),
        }

    def __str__(self) -> str:
        prepared, needs = self.prepared, self.prepared.needs
        config, model = prepared.config, prepared.model_config
        groups = ", ".join(f"{name} {count:,}" for name, count in needs.groups.items() if count)
        tied = ", head tied to the embedding" if model.tie_word_embeddings else ""
        memory = f"memory: {self.peak_memory_bytes / 2**30:.1f} GiB at the peak (measured just now)"
        if needs.free_memory_bytes is not None:
            memory += f"; {needs.free_memory_bytes / 2**30:.1f} GiB are free on {prepared.device}"
        speed = config.tokens_per_step / self.seconds_per_step
        left = counted(config.num_steps - self.steps_done, "step") + " left" if self.steps_done else "total"
        return "\n".join(
            [
                *summary(prepared),
                f"sizes: hidden {model.hidden_size}, {counted(model.num_heads, 'head')} of {model.head_dim} "
                f"over {counted(model.num_kv_heads, 'key-value head')}, "
                f"intermediate {model.intermediate_size}, {model.max_position_embeddings:,} positions{tied}",
                f"parameters: {groups}",
                f"tokens: {config.num_steps * config.tokens_per_step:,} in total, "
                f"{self.data_epochs:.3g} epochs (passes over the training windows)",
                memory,
                f"disk: {decimal(needs.disk_bytes)} for checkpoints; "
                f"{decimal(needs.free_disk_bytes)} are free",
                f"speed: {self.seconds_per_step:.2f} s per step ({speed:,.0f} tokens/s), "
                f"{self.seconds_per_evaluation:.1f} s per evaluation, "
                f"{self.seconds_per_checkpoint:.1f} s per checkpoint (measured just now)",
                f"{left}: about {format_duration(self.seconds)}, {self.evaluation_share:.0%} of it for "
                f"{counted(self.evaluations, 'evaluation')}",
            ]
        )


def plan(config: PretrainConfig) -> Plan:
    """Check everything, and measure a step, a part of an evaluation and the disk. Train and write nothing.

    If torchrun started several processes, all of them call this, and measure together.

    Raises:
        AprError: the init file is not valid.
        OSError: a file does not exist or cannot be read.
        RefusedError: the run cannot start, or memory runs out.
    """
    prefer_expandable_segments()
    with joined(config.rank_timeout) as world:
        return _plan(config, world)


def _plan(config: PretrainConfig, world: World) -> Plan:
    with world.together():
        prepared = prepare(config, world)
    check_same_micro_batch(prepared)
    reset_peak_memory(prepared.device)
    with training_settings(prepared.device, deterministic=config.deterministic):
        with world.together(), refusing_a_model_too_large(prepared.parameters, prepared.device):
            model = prepared.build_model()
        try:
            # Before and after the steps, as in a run: the memory of captured steps serves no evaluation.
            _measure_evaluation(prepared, model)
            step = _measure_step(prepared, model)
            evaluation = _measure_evaluation(prepared, model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RefusedError(out_of_memory(prepared, error)) from None
    measured = world.gather([step, evaluation, peak_memory_bytes(prepared.device)])
    step, evaluation, held = (max(of_ranks) for of_ranks in zip(*measured, strict=True))
    copied = prepared.needs.checkpoint_bytes if prepared.device.type == "cpu" else 0
    checkpoint = checkpoint_seconds(nearest_existing(config.run_dir), prepared.needs.checkpoint_bytes)
    return Plan(prepared, step, evaluation, checkpoint, int(held) + copied)


def summary(prepared: Prepared) -> list[str]:
    """Return lines that say what is trained, on what and where."""
    config, model, train = prepared.config, prepared.model_config, prepared.split.train
    start = f"from {config.init}" if config.init else f"from scratch, seed {config.seed}"
    return [
        f"model: {model.family}, {prepared.parameters / 1e6:.1f} M parameters, "
        f"{counted(model.num_layers, 'layer')}, vocabulary {model.vocab_size:,}, {start}",
        f"train: {counted(len(train), 'window')} of {counted(config.seq_length, 'token')} "
        f"from {config.dataset}",
        f"held out: {prepared.split.description}; {counted(prepared.val_tokens, 'token')} per evaluation",
        f"steps: {config.num_steps} of {counted(config.tokens_per_step, 'token')}, peak lr {config.lr:g}, "
        f"warm-up {config.warmup_steps}; evaluated every {counted(config.eval_every, 'step')}",
        f"needs: about {prepared.needs.memory_bytes / 2**30:.1f} GiB of memory, "
        f"{decimal(prepared.needs.checkpoint_bytes)} per checkpoint",
        *prepared.notes,
    ]


def _measure_step(prepared: Prepared, model: Decoder) -> float:
    """Return the seconds of a step, with its micro-batches scaled up from one."""
    config, device = prepared.config, prepared.device
    step = Step(
        model,
        make_optimizer(model, config),
        precision=config.precision,
        grad_clip=config.grad_clip,
        compiled=config.compile,
        recomputes=config.activation_checkpointing,
        world=prepared.world,
        fixed_order=config.deterministic,
    )
    # Two of several: adding up gradients takes memory and time of its own.
    batches = [_batch(prepared, config.batch_size)] * min(config.grad_accum, 2)
    seconds = []
    for _ in range(_WARM_UP_STEPS + _MEASURED_STEPS):
        started = _now(device)
        step.accumulate(batches, config.tokens_per_step)
        computed = _now(device)
        step.update(lr=0.0)  # the update runs, and changes no weight
        scale = config.grad_accum / len(batches)
        seconds.append((computed - started) * scale + _now(device) - computed)
    return median(seconds[_WARM_UP_STEPS:])


def _measure_evaluation(prepared: Prepared, model: Decoder) -> float:
    windows = prepared.val_tokens // prepared.config.seq_length
    batch = _batch(prepared, min(group_size(prepared.config.seq_length, prepared.device), windows))
    seconds = 0.0
    # The first time on a GPU, libraries choose kernels.
    for _ in range(2 if prepared.device.type == "cuda" else 1):
        started = _now(prepared.device)
        with torch.no_grad(), computing(prepared.device, prepared.config.precision):
            token_losses(model, batch)
        seconds = _now(prepared.device) - started
    reshard(model)
    groups = math.ceil(windows / len(batch) / prepared.world.size)
    # One rank's last group may be smaller; of several, the slowest one decides.
    whole = prepared.val_tokens / (len(batch) * prepared.config.seq_length)
    return seconds * (whole if prepared.world.size == 1 else groups)


def _batch(prepared: Prepared, windows: int) -> torch.Tensor:
    # Windows repeat if there are fewer than one batch; the time of a step does not depend on their text.
    indices = np.arange(windows) % len(prepared.split.train)
    return torch.from_numpy(prepared.split.train.batch(indices)).to(prepared.device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        # Kernels run asynchronously: without waiting, the clock would measure how fast they are launched.
        torch.cuda.synchronize(device)
    return time.perf_counter()

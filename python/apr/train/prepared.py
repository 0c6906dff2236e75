"""A run that has passed all checks and may start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apr.container.load import load
from apr.data.split import evaluation_windows
from apr.model.decoder import Decoder
from apr.model.fill import fill
from apr.model.init import init_weights
from apr.train.parallel.shard import assign, sharded_model, whole_parameters
from apr.train.parallel.world import ALONE, World

if TYPE_CHECKING:
    from pathlib import Path

    from apr.data.split import Split
    from apr.model.config import ModelConfig
    from apr.train.checkpoint.metadata import CheckpointMetadata
    from apr.train.checkpoint.resume import ResumePoint
    from apr.train.config import Precision, ResolvedConfig
    from apr.train.sampler import Sampler


@dataclass(frozen=True)
class Needs:
    """Estimates of what a run needs, in bytes, and what is free."""

    device: torch.device
    precision: Precision
    groups: dict[str, int]
    """Number of parameters of embedding, attention, mlp, norms and head; a tied head has none of its own."""
    flops_per_token: int
    """FLOPs of one token, forward and backward."""
    memory_bytes: int
    free_memory_bytes: int | None
    """None if the system does not tell."""
    memory_in_use_bytes: int
    """What this process held before the run."""
    checkpoint_bytes: int
    """Size of one checkpoint: weights and two moments in float32."""
    disk_bytes: int
    """Size of all checkpoints that exist at a time, minus those that a resumed run already has."""
    free_disk_bytes: int

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(self.groups.values())


@dataclass(frozen=True)
class Prepared:
    """A run that may start: its options, model, data and device."""

    config: ResolvedConfig
    model_config: ModelConfig
    split: Split
    device: torch.device
    needs: Needs
    metadata: CheckpointMetadata
    """What all its checkpoints have in their metadata."""
    notes: tuple[str, ...]
    """Lines for the user: what was chosen, and warnings."""
    weights: Path | None
    """The file with the model's weights; None from scratch."""
    resume_point: ResumePoint | None
    """The checkpoints of a run that is resumed; None for a new run."""
    sampler: Sampler | None = None
    """Continues --sample-prompt; None without one."""
    world: World = ALONE
    """The ranks that train together."""

    @property
    def parameters(self) -> int:
        """Number of the model's parameters; a tied head counts once."""
        return self.needs.parameters

    @property
    def starts_untrained(self) -> bool:
        """Whether the run started from random weights: from scratch, or from a file of them."""
        base = self.metadata.training["base_model"]
        return base is None or base.get("untrained", False)

    @property
    def val_tokens(self) -> int:
        """Number of tokens that each evaluation takes."""
        return evaluation_windows(self.split.held_out, self.config.val_tokens) * self.config.seq_length

    def build_model(self) -> Decoder:
        """Return the model with the weights that the run starts or resumes from, on its device.

        Raises:
            WeightsError: the tensors of the file do not fit the model.
        """
        # Empty, not initialized: every parameter is written exactly once, from the file or from the seed.
        if self.shards_model:
            model = sharded_model(self.model_config, self.device, self.world.size, self.config.precision)
        else:
            model = Decoder.empty(self.model_config, self.device, torch.float32)
        if self.weights is None:
            init_weights(model, self.config.seed, assign)
        else:
            with load(self.weights) as file:
                fill(self.model_config, whole_parameters(model), file)
        return model

    @property
    def shards_model(self) -> bool:
        """Whether the model is divided among the ranks."""
        return self.config.shard_model and self.world.size > 1

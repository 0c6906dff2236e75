"""A run that may start: what the checks before the first step found, and what the run works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from apr.container.load import load
from apr.data.split import evaluation_windows
from apr.model.decoder import Decoder
from apr.model.fill import fill
from apr.model.init import init_weights

if TYPE_CHECKING:
    from pathlib import Path

    from apr.data.split import Split
    from apr.model.config import ModelConfig
    from apr.train.checkpoint.resume import Found
    from apr.train.config import Precision, ResolvedConfig
    from apr.train.start.needs import Needs


@dataclass(frozen=True)
class Prepared:
    """A run that may start: what it trains, on what, where."""

    config: ResolvedConfig
    model_config: ModelConfig
    split: Split
    device: torch.device
    precision: Precision
    needs: Needs
    facts: dict[str, Any]
    """Metadata of its checkpoints, but for the run's state."""
    notes: tuple[str, ...]
    """What a user should know, and warnings."""
    weights: Path | None
    """The file that the model is filled from; None from scratch."""
    found: Found | None
    """Of a run that is taken up: its checkpoints."""

    @property
    def parameters(self) -> int:
        """Of the model; a tied head counts once."""
        return self.needs.parameters

    @property
    def val_tokens(self) -> int:
        """Tokens that each evaluation takes."""
        return evaluation_windows(self.split.held_out, self.config.val_tokens) * self.config.seq_length

    def build_model(self) -> Decoder:
        """The model that the run starts from or goes on with, on its device.

        Raises:
            WeightsError: the tensors of its file do not fit.
        """
        model = Decoder.empty(self.model_config, self.device, torch.float32)
        if self.weights is None:
            init_weights(model, self.config.seed)
        else:
            with load(self.weights) as file:
                fill(self.model_config, model.named_parameters(), file)
        return model

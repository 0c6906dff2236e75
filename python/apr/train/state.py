"""What a run knows of itself beyond weights and optimiser; a checkpoint keeps it in its metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunState:
    """Counts and history; all of it depends on data, seed and options alone, never on time or place."""

    step: int = 0
    """Optimiser steps done."""
    tokens_seen: int = 0
    """Tokens whose loss was trained on."""
    train_loss: float | None = None
    """Mean over the tokens of the current or last epoch, nats."""
    epoch_loss_sum: float = 0.0
    epoch_tokens: int = 0
    grad_norm_max: float = 0.0
    """Largest gradient norm before clipping."""
    step0_train_loss: float | None = None
    initial_val_loss: float | None = None
    val_loss_history: list[float] = field(default_factory=list)
    """Held-out loss at the end of each epoch."""
    best_epoch: int | None = None

    @property
    def epochs(self) -> int:
        """Epochs that were evaluated."""
        return len(self.val_loss_history)

    @property
    def best_val_loss(self) -> float | None:
        """The lowest held-out loss of an epoch."""
        return None if self.best_epoch is None else self.val_loss_history[self.best_epoch]

    def add_step(self, train_loss: float, grad_norm: float, tokens: int) -> None:
        """Count a step that was taken."""
        if self.step == 0:
            self.step0_train_loss = train_loss
        self.step += 1
        self.tokens_seen += tokens
        self.epoch_loss_sum += train_loss * tokens
        self.epoch_tokens += tokens
        self.grad_norm_max = max(self.grad_norm_max, grad_norm)

    def end_epoch(self, val_loss: float) -> None:
        """Count an epoch that was evaluated."""
        self.val_loss_history.append(val_loss)
        if self.best_val_loss is None or val_loss < self.best_val_loss:
            self.best_epoch = self.epochs - 1
        self.train_loss = self.epoch_loss_sum / self.epoch_tokens
        self.epoch_loss_sum, self.epoch_tokens = 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)

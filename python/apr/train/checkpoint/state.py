"""The counters and history of a run; a checkpoint has them in its metadata."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from apr.errors import RefusedError

if TYPE_CHECKING:
    from apr.container.tensor_file import TensorFile

# A loss this many standard deviations above the mean of this many steps is a spike.
_SPIKE_SIGMA, _SPIKE_WINDOW = 6.0, 100


@dataclass
class RunState:
    """Counters and history. They depend on data, seed and options alone, never on time or place."""

    step: int = 0
    """Number of optimizer steps done."""
    tokens_seen: int = 0
    """Number of tokens whose loss was trained on."""
    train_loss: float | None = None
    """Mean over the tokens between the last two evaluations, in nats."""
    epoch_loss_sum: float = 0.0
    epoch_tokens: int = 0
    grad_norm_max: float = 0.0
    """Largest gradient norm before clipping."""
    step0_train_loss: float | None = None
    initial_val_loss: float | None = None
    """Held-out loss before the first step, in nats."""
    val_loss_history: list[float] = field(default_factory=list)
    """Held-out loss of each evaluation after training began, in nats."""
    evaluated_step: int = 0
    """Number of steps done before the last of them."""
    best_epoch: int | None = None
    """Number of the one with the lowest held-out loss, from 0. What lies between two evaluations is called an
    epoch in the files of a run, as in the ecosystem's tool."""
    recent_losses: list[float] = field(default_factory=list)
    """Training losses of the last 100 steps."""
    spikes: int = 0
    """Number of steps whose loss was far above those before."""
    skipped_steps: int = 0
    """Number of spikes that updated nothing."""
    agreement: float | None = None
    """Relative difference of the first step's loss between the training and the evaluation path."""

    @property
    def epochs(self) -> int:
        """Number of evaluations after training began."""
        return len(self.val_loss_history)

    @property
    def best_val_loss(self) -> float | None:
        """The lowest held-out loss after training began."""
        return None if self.best_epoch is None else self.val_loss_history[self.best_epoch]

    @property
    def final_val_loss(self) -> float | None:
        """The held-out loss of the weights as they are now, if it was measured."""
        return self.val_loss_history[-1] if self.epochs and self.evaluated_step == self.step else None

    @property
    def updates(self) -> int:
        """Number of updates of the optimizer: the steps that were not skipped."""
        return self.step - self.skipped_steps

    @property
    def loss_limit(self) -> float | None:
        """The mean of the last 100 losses plus 6 standard deviations; None before there are 100.

        A loss above it is a spike. Spikes count among the 100, so that a loss that stays at a higher level
        soon stops being one.
        """
        losses = self.recent_losses
        if len(losses) < _SPIKE_WINDOW:
            return None
        mean = math.fsum(losses) / len(losses)
        variance = math.fsum((loss - mean) ** 2 for loss in losses) / len(losses)
        return mean + _SPIKE_SIGMA * math.sqrt(variance)

    def add_step(self, train_loss: float, grad_norm: float, tokens: int, *, updated: bool = True) -> None:
        """Count a step, whether or not it updated the weights."""
        limit = self.loss_limit
        if limit is not None and train_loss > limit:
            self.spikes += 1
        if not updated:
            self.skipped_steps += 1
        self.recent_losses = [*self.recent_losses, train_loss][-_SPIKE_WINDOW:]
        if self.step == 0:
            self.step0_train_loss = train_loss
        self.step += 1
        self.tokens_seen += tokens
        # Summed over tokens, not averaged over steps: means of means weigh steps wrongly.
        self.epoch_loss_sum += train_loss * tokens
        self.epoch_tokens += tokens
        self.grad_norm_max = max(self.grad_norm_max, grad_norm)

    def add_evaluation(self, val_loss: float) -> None:
        """Count an evaluation."""
        self.val_loss_history.append(val_loss)
        self.evaluated_step = self.step
        if self.best_val_loss is None or val_loss < self.best_val_loss:
            self.best_epoch = self.epochs - 1
        self.train_loss = self.epoch_loss_sum / self.epoch_tokens
        self.epoch_loss_sum, self.epoch_tokens = 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, which a checkpoint's metadata contains."""
        return asdict(self)


def state_of(file: TensorFile) -> RunState:
    """Return the run's state from a checkpoint's metadata.

    Raises:
        RefusedError: the file is not a checkpoint.
    """
    try:
        # A TypeError means that the fields are those of another version.
        return RunState(**file.metadata["training"]["state"])
    except (KeyError, TypeError):
        raise RefusedError(
            f"{file.path}: not a checkpoint of a run; its metadata has no training state", path=file.path
        ) from None

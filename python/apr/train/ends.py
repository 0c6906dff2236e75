"""How a run's loop comes to an end of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.train import gates

if TYPE_CHECKING:
    from apr.train.checkpoint.state import RunState
    from apr.train.config import ResolvedConfig
    from apr.train.record.result import Status


@dataclass(frozen=True)
class Ended:
    """The loop came to an end of its own."""

    status: Status
    detail: str


def after_epoch(config: ResolvedConfig, state: RunState, cap: float) -> Ended | None:
    """What the gates say at the end of an epoch.

    Args:
        config: the options of the run.
        state: it counts the epoch.
        cap: see `gates.divergence`.
    """
    history = state.val_loss_history
    divergence = gates.divergence(history, cap)
    if not divergence.passed:
        return Ended(
            "DIVERGENCE", f"held-out loss {divergence.value:.4f} is above {divergence.threshold:.4f}"
        )
    met = history[-1] <= config.target_val_loss
    if met and config.stop_at_target and config.contract is None:
        return budget_spent(config, state)
    patience = gates.patience(history, state.best_epoch, epochs=config.patience, min_epochs=config.min_epochs)
    if not patience.passed and not met:
        return Ended("EARLY_STOP", f"no new best held-out loss in {patience.value} epochs; {_change(state)}")
    return None


def budget_spent(config: ResolvedConfig, state: RunState) -> Ended:
    """The steps are done, or need not be: the held-out loss decides which."""
    target, final = config.target_val_loss, state.final_val_loss
    met = final is not None and final <= target
    words = f"target {target:g} {'met' if met else 'not met'}"
    return Ended("TARGET_MET" if met else "BUDGET_SPENT", f"{_change(state)}; {words}")


def _change(state: RunState) -> str:
    initial, final = state.initial_val_loss, state.final_val_loss
    after = "not measured" if final is None else f"{final:.4f}"
    return f"held-out loss {initial:.4f} before, {after} after {state.step} steps"

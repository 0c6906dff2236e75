"""How a run ends: its status, its exit code, and one sentence that says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.errors import EXIT_REFUSED
from apr.plurals import counted
from apr.train import gates

if TYPE_CHECKING:
    from apr.train.checkpoint.state import RunState
    from apr.train.config import ResolvedConfig
    from apr.train.record.result import Status

# Statuses that the training loop itself ends with.
_EXIT_CODES: dict[Status, int] = {
    # A run that used up its steps did what it was asked to, whatever its loss. Other trainers called that
    # "CONVERGED"; here the word does not occur.
    "TARGET_MET": 0,
    "BUDGET_SPENT": 0,
    "EARLY_STOP": 0,
    "DIVERGENCE": EXIT_REFUSED,
    "NUMERICAL_INSTABILITY": EXIT_REFUSED,
    "STREAM_EXHAUSTED": EXIT_REFUSED,
    "REFUSED": EXIT_REFUSED,
}


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    status: Status
    exit_code: int
    detail: str


def ending(status: Status, detail: str) -> Ending:
    """Return an ending with the exit code of its status."""
    return Ending(status, _EXIT_CODES[status], detail)


def after_evaluation(config: ResolvedConfig, state: RunState, cap: float) -> Ending | None:
    """Return how the run ends after this evaluation, or None if it continues.

    Args:
        config: the options of the run.
        state: its history, this evaluation included.
        cap: the largest held-out loss that the first of them may have, in nats.
    """
    history = state.val_loss_history
    # Divergence is decided first: a loss that doubled must not end as TARGET_MET or EARLY_STOP with exit code
    # 0.
    divergence = gates.divergence(history, cap)
    if not divergence.passed:
        loss, threshold = divergence.value, divergence.threshold
        return ending("DIVERGENCE", f"held-out loss {loss:.4f} is above the limit of {threshold:.4f}")
    met = _meets(config, history[-1])
    # A contract is decided from a whole run: its step count is a condition of the verdict.
    if met and config.stop_at_target and config.contract is None:
        return budget_spent(config, state)
    patience = gates.patience(
        history, state.best_epoch, patience=config.patience, min_evaluations=config.min_evaluations
    )
    # A run that met its target and was told not to stop there (--no-stop-at-target, --contract) uses up its
    # steps.
    if not patience.passed and not met:
        assert isinstance(patience.value, int)
        waited = counted(patience.value, "evaluation")
        return ending("EARLY_STOP", f"no new best held-out loss in {waited}; {_change(state)}")
    return None


def budget_spent(config: ResolvedConfig, state: RunState) -> Ending:
    """Return how a run ends whose steps are done, or that met its target."""
    if config.target_val_loss is None:
        return ending("BUDGET_SPENT", _change(state))
    met = state.final_val_loss is not None and _meets(config, state.final_val_loss)
    target = f"target {config.target_val_loss:g}"
    # A run that only started below its target has reached nothing: the sentence says so first.
    if met_before_training(config, state):
        lost = "" if met else " and is no longer met"
        detail = f"{target} was already met before training{lost}; {_change(state)}"
    else:
        detail = f"{_change(state)}; {target} {'met' if met else 'not met'}"
    return ending("TARGET_MET" if met else "BUDGET_SPENT", detail)


def met_before_training(config: ResolvedConfig, state: RunState) -> bool | None:
    """Return whether the model met the target before the first step.

    None if there is no target, or if the loss was not measured then.
    """
    if state.initial_val_loss is None or config.target_val_loss is None:
        return None
    return _meets(config, state.initial_val_loss)


def _meets(config: ResolvedConfig, val_loss: float) -> bool:
    return config.target_val_loss is not None and val_loss <= config.target_val_loss


def _change(state: RunState) -> str:
    initial, final, steps = state.initial_val_loss, state.final_val_loss, counted(state.step, "step")
    if initial is None or final is None:
        return f"held-out loss was not measured in {steps}"
    if final == initial:
        return f"held-out loss did not change ({final:.4f}) in {steps}"
    word = "improved" if final < initial else "worsened"
    return f"held-out loss {word} by {abs(initial - final):.4g} ({initial:.4f} to {final:.4f}) in {steps}"

"""What a run came to: `result.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal[
    "TARGET_MET", "BUDGET_SPENT", "EARLY_STOP", "DIVERGENCE", "NUMERICAL_INSTABILITY", "STREAM_EXHAUSTED",
    "REFUSED", "INTERRUPTED", "FAILED",
]  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """One gate: `passed` is None where it was not asked for or does not apply."""

    name: str
    passed: bool | None
    value: object
    threshold: object


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that `result.json` holds. Losses in nats a token; paths relative to the run directory."""

    status: Status
    exit_code: int
    detail: str
    """One sentence."""
    steps_completed: int = 0
    epochs_completed: int = 0
    tokens_seen: int = 0
    wall_seconds: float = 0.0
    """Since `pretrain` was called, over all parts of a resumed run; the same clock as in `train.jsonl`."""
    step0_train_loss: float | None = None
    initial_val_loss: float | None = None
    final_val_loss: float | None = None
    """Of the last evaluation, if it was made after the last step."""
    best_val_loss: float | None = None
    spikes: int = 0
    """Steps whose loss was far above those before."""
    skipped_steps: int = 0
    """Those of them that updated nothing (--skip-spikes)."""
    val_loss_history: tuple[float, ...] = ()
    best_checkpoint: str | None = None
    last_checkpoint: str | None = None
    export: str | None = None
    """The weights alone, where --save-dtype asked for them."""
    gates: tuple[Gate, ...] = ()
    contract: dict[str, object] | None = None
    """The verdict, if one was asked for."""
    device: str | None = None
    peak_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    """Median of the steps after the first two, of the last part of a resumed run."""
    mfu: float | None = None
    """Share of the device's peak that the steps reached; None where the peak is not known."""
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    resumed_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

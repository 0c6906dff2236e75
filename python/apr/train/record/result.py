"""`result.json`: the outcome of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Status = Literal[
    "TARGET_MET", "BUDGET_SPENT", "EARLY_STOP", "DIVERGENCE", "NUMERICAL_INSTABILITY", "STREAM_EXHAUSTED",
    "REFUSED", "INTERRUPTED", "FAILED",
]  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """The verdict of one gate, with the value it measured and the threshold it compared it with."""

    name: str
    passed: bool | None
    """None if the gate was not asked for or does not apply."""
    value: float | str | None
    threshold: float | str | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that `result.json` contains.

    Losses are in nats per token, paths are relative to the run directory.
    """

    status: Status
    exit_code: int
    detail: str
    """One sentence."""
    # The defaults are those of a refusal, which knows nothing of what follows.
    steps_completed: int = 0
    epochs_completed: int = 0
    """Number of evaluations after training began. The name is that of the ecosystem's tool."""
    tokens_seen: int = 0
    wall_seconds: float = 0.0
    """Seconds since `pretrain` was called, over all parts of a resumed run, as in `train.jsonl`."""
    step0_train_loss: float | None = None
    initial_val_loss: float | None = None
    final_val_loss: float | None = None
    """The last evaluation, if no step followed it."""
    best_val_loss: float | None = None
    target_met_before_training: bool | None = None
    """Whether the model met the target before its first step; None without a target, or if the loss was not
    measured then."""
    spikes: int = 0
    """Number of steps whose loss was far above those before."""
    skipped_steps: int = 0
    """Number of spikes that updated nothing (--skip-spikes)."""
    val_loss_history: tuple[float, ...] = ()
    best_checkpoint: str | None = None
    last_checkpoint: str | None = None
    export: str | None = None
    """The weights alone, if --save-dtype asked for them."""
    gates: tuple[Gate, ...] = ()
    contract: dict[str, object] | None = None
    """The verdict on --contract."""
    device: str | None = None
    peak_memory_bytes: int | None = None
    """Of the rank that held most."""
    ranks: int = 1
    """Number of processes that trained together."""
    peak_memory_by_rank: tuple[int, ...] = ()
    """In the order of the ranks; after a fault only that of the rank that wrote this."""
    slowest_rank_seconds: float | None = None
    """Median step time of the slowest rank; None for a run in one process."""
    tokens_per_second: float | None = None
    """Median over the steps of this process, without the first two."""
    mfu: float | None = None
    """Fraction of the device's peak FLOP/s that the steps reached; None if the peak is not known."""
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    micro_batch: int | None = None
    """Windows that were computed at a time."""
    grad_accum: int | None = None
    """Micro-batches per optimizer step."""
    resumed_from: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the result that `to_dict` gave these values of. Keys of other versions are left out.

        Raises:
            TypeError: they are not those of a result.
        """
        known = {key: values[key] for key in values.keys() & cls.__dataclass_fields__.keys()}
        gates = tuple(Gate(**gate) for gate in known.pop("gates", ()))
        history = tuple(known.pop("val_loss_history", ()))
        memory = tuple(known.pop("peak_memory_by_rank", ()))
        return cls(**known, gates=gates, val_loss_history=history, peak_memory_by_rank=memory)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

"""What must hold of a run; each gate gives the value it measured beside its threshold."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from apr.train.checkpoint.files import epoch_path
from apr.train.record.metrics import incomplete_steps
from apr.train.record.result import Gate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

# A held-out loss that doubles from one epoch to the next will not come back.
_DIVERGENCE_FACTOR = 2.0


def divergence(history: Sequence[float], cap: float) -> Gate:
    """The first epoch's held-out loss stays under the cap, each later one under twice the one before.

    It gives the first that does not; what comes after it makes nothing good.
    """
    if not history:
        return Gate("divergence", None, None, cap)
    thresholds = [cap, *(_DIVERGENCE_FACTOR * loss for loss in history[:-1])]
    compared = list(zip(history, thresholds, strict=True))
    beyond = [pair for pair in compared if not pair[0] <= pair[1]]
    return Gate("divergence", not beyond, *(beyond or compared[-1:])[0])


def first_cap(cap: float | None, vocab_size: int) -> float:
    """The cap of the first epoch: the mode's, or twice ln V."""
    return 2 * math.log(vocab_size) if cap is None else cap


def patience(history: Sequence[float], best_epoch: int | None, *, epochs: int, min_epochs: int) -> Gate:
    """The best epoch is not `epochs` or more ago; not asked before `min_epochs`."""
    since = 0 if best_epoch is None else len(history) - 1 - best_epoch
    return Gate("patience", since < epochs or len(history) < min_epochs, since, epochs)


def target(final_val_loss: float | None, threshold: float) -> Gate:
    """The last held-out loss is at most the target."""
    passed = None if final_val_loss is None else final_val_loss <= threshold
    return Gate("target", passed, final_val_loss, threshold)


def metrics(records: Sequence[dict[str, Any]], steps: int) -> Gate:
    """`train.jsonl` has the six fields of every step, finite."""
    incomplete = incomplete_steps(list(records), steps)
    return Gate("metrics", not incomplete, len(incomplete), 0)


def artifacts(run_dir: Path, epochs: int) -> Gate:
    """Each epoch has its checkpoint and its metadata; a pruned one says so. The others are named."""
    lost = [name for epoch in range(epochs) if (name := _lost(epoch_path(run_dir, epoch))) is not None]
    return Gate("artifacts", not lost, ", ".join(lost) or "all there", "all there")


def _lost(path: Path) -> str | None:
    """What is not as it should be of an epoch's two files."""
    metadata = path.with_suffix(".metadata.json")
    try:
        facts = json.loads(metadata.read_text(encoding="utf-8"))
    except OSError:
        return f"{metadata.name} missing"
    except ValueError:
        return f"{metadata.name} is no JSON"
    if path.is_file() or facts.get("pruned") is True:
        return None
    return f"{path.name} {'damaged' if facts.get('damaged') is True else 'missing'}"

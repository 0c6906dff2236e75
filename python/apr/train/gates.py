"""What must hold of a run. Each gate returns the value that it measured beside its threshold."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from apr.train.checkpoint.paths import epoch_path, metadata_path
from apr.train.record.metrics import incomplete_steps
from apr.train.record.result import Gate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

# A held-out loss that doubles from one evaluation to the next does not recover.
_DIVERGENCE_FACTOR = 2.0


def divergence(history: Sequence[float], cap: float) -> Gate:
    """Check that the held-out loss stays under a cap at first, then under twice the one before.

    Args:
        history: the held-out loss of each evaluation after training began, in nats.
        cap: the first one's threshold.

    Returns:
        The gate with the first evaluation that fails, or else with the last one.
    """
    gate = Gate("divergence", None, None, cap)
    # Only the first failure counts: later losses are compared with a loss that is already bad.
    threshold = cap
    for loss in history:
        # `not <=` instead of `>`: NaN must fail too.
        gate = Gate("divergence", loss <= threshold, loss, threshold)
        if not gate.passed:
            break
        threshold = _DIVERGENCE_FACTOR * loss
    return gate


def first_cap(cap: float | None, vocab_size: int) -> float:
    """Return the cap of the first evaluation: the mode's, or twice ln V, the loss of a uniform guess."""
    return 2 * math.log(vocab_size) if cap is None else cap


def patience(history: Sequence[float], best: int | None, *, patience: int, min_evaluations: int) -> Gate:
    """Check that the best evaluation is less than `patience` ago; it passes until there are enough of them.

    Args:
        history: the held-out loss of each evaluation after training began, in nats.
        best: the index of the lowest one.
        patience: number of evaluations without a new best one at which the gate fails.
        min_evaluations: number of evaluations that there must be before it fails.
    """
    since_best = 0 if best is None else len(history) - 1 - best
    passed = since_best < patience or len(history) < min_evaluations
    return Gate("patience", passed, since_best, patience)


def target(final_val_loss: float | None, threshold: float | None) -> Gate:
    """Check that the last held-out loss is at most the target, if there is one."""
    passed = None if final_val_loss is None or threshold is None else final_val_loss <= threshold
    return Gate("target", passed, final_val_loss, threshold)


def metrics(records: Sequence[dict[str, Any]], steps: int) -> Gate:
    """Check that `train.jsonl` has the six fields of every step, each finite."""
    incomplete = incomplete_steps(records, steps)
    return Gate("metrics", not incomplete, len(incomplete), 0)


def artifacts(run_dir: Path, evaluations: int) -> Gate:
    """Check that each evaluation has its checkpoint and its metadata file, unless that says `pruned`."""
    problems = []
    for number in range(evaluations):
        checkpoint = epoch_path(run_dir, number)
        metadata = metadata_path(checkpoint)
        try:
            state = json.loads(metadata.read_text(encoding="utf-8"))
        except OSError:
            problems.append(f"{metadata.name} missing")
            continue
        except ValueError:
            problems.append(f"{metadata.name} is not valid JSON")
            continue
        if not checkpoint.is_file() and state.get("pruned") is not True:
            damaged = state.get("damaged") is True
            problems.append(f"{checkpoint.name} {'damaged' if damaged else 'missing'}")
    # The specification, and scripts that read result.json, spell this gate's name the British way.
    return Gate("artefacts", not problems, ", ".join(problems) or "all present", "all present")

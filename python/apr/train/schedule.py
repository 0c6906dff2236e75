"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, min_ratio: float) -> float:
    """Return the rate of a step: linear warm-up to `peak`, then a cosine down to `min_ratio` of it.

    With w = max(1, `warmup_steps`) and N = `num_steps`, step s has the rate peak · (s + 1) / w if s < w. The
    steps after it have peak · (r + (1 - r) · (1 + cos(π · (s + 1 - w) / (N - w))) / 2), with r = `min_ratio`.

    Args:
        step: number of the step, from 0; less than `num_steps`.
        peak: the rate of the last warm-up step, or of the first step if there is no warm-up.
        warmup_steps: number of warm-up steps. A run that was shortened may end in its warm-up.
        num_steps: number of steps of the whole run.
        min_ratio: the rate of the last step, as a fraction of the peak, unless it is a warm-up step.
    """
    # At least one: without a step at the peak, the only step of a run of one had `min_ratio` of it.
    warmup_steps = max(1, warmup_steps)
    # Counted from 1, so that the first step trains and the last one has exactly `min_ratio` of the peak.
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / (num_steps - warmup_steps)
    return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, min_ratio: float) -> float:
    """Return the rate of a step: linear warm-up to `peak`, then a cosine down to `min_ratio` of it.

    Args:
        step: number of the step, from 0; less than `num_steps`.
        peak: the rate of the last warm-up step.
        warmup_steps: number of warm-up steps; less than `num_steps`.
        num_steps: number of steps of the whole run.
        min_ratio: the rate of the last step, as a fraction of the peak.
    """
    # Counted from 1, so that the first step trains and the last one has exactly `min_ratio` of the peak.
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / (num_steps - warmup_steps)
    return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

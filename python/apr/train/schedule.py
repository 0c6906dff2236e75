"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, min_ratio: float) -> float:
    """Linear warm-up to `peak`, then a cosine down to `min_ratio` of it at the last step.

    Args:
        step: from 0; below `num_steps`.
        peak: reached by the last step of the warm-up.
        warmup_steps: below `num_steps`.
        num_steps: of the whole run.
        min_ratio: share of the peak that the last step has.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / (num_steps - warmup_steps)
    return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

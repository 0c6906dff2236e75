"""Noticing that the steps of a run became far slower than they were."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from statistics import median

# In the first steps kernels are chosen, memory is touched for the first time, and layers may be compiled.
_WARM_UP_STEPS = 2
# A speed is that of so many steps. More must be slow than must be fast: a checkpoint that is written beside a
# few steps slows them down, and says nothing about the machine.
_FAST_STEPS, _SLOW_STEPS = 10, 20
# Far below: a processor that clocks down in the heat, or text of another kind, makes less of a difference.
_FACTOR = 2.0


class Pace:
    """Compares the latest steps of a process with its fastest ones, and tells once."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_SLOW_STEPS)
        self._steps = 0
        self._told = False
        self.fastest = math.inf
        """Seconds of a step, as the median of the fastest ten in a row."""

    def add(self, seconds: float) -> float | None:
        """Count a step. Return the seconds of the latest steps if they became far slower, the first time."""
        self._steps += 1
        if self._told or self._steps <= _WARM_UP_STEPS:
            return None
        self._recent.append(seconds)
        if len(self._recent) < _FAST_STEPS:
            return None
        latest = median(islice(self._recent, len(self._recent) - _FAST_STEPS, None))
        self.fastest = min(self.fastest, latest)
        now = median(self._recent)
        # The latest too: a run that was slow and became fast has twenty steps of which most are slow.
        slow = min(now, latest) > _FACTOR * self.fastest
        self._told = slow and len(self._recent) == _SLOW_STEPS
        return now if self._told else None

"""What torchrun tells a process in its environment. Nothing here loads torch."""

from __future__ import annotations

import os


def launched_ranks() -> int:
    """Return the number of processes that torchrun has started for this run; 1 without torchrun."""
    # LOCAL_RANK too: schedulers of clusters set WORLD_SIZE for other purposes.
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def is_silent() -> bool:
    """Whether another process of the run prints what this one would print: errors in options, for one."""
    return launched_ranks() > 1 and os.environ["RANK"] != "0"

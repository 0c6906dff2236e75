"""`--max-minutes`: stopping in time to save and end."""

from __future__ import annotations

import time

# What follows the last save: the gates, `result.json` and the picture, whose package takes seconds to load.
_END_SECONDS = 5.0


class OutOfTime(Exception):  # noqa: N818 (a request, not an error)
    """What comes next, and saving after it, would not end in time."""


class Deadline:
    """When a run has to be over.

    Args:
        started: `time.monotonic()` of when its time began.
        minutes: how long it may take; None for any time.
    """

    def __init__(self, started: float, minutes: float | None) -> None:
        self._end = None if minutes is None else started + 60 * minutes

    def is_before_end_of(self, seconds: float) -> bool:
        """Whether something that takes so many seconds, the saving after it included, would end too late."""
        return self._end is not None and time.monotonic() + seconds + _END_SECONDS > self._end

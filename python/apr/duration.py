"""Durations as people read them."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours where there are any: `1:02`, `1:02:03`."""
    # Rounded first: 59.6 seconds are 1:00, not 0:60.
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"

"""Numbers of things in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 shard", "2,000 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

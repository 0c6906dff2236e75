"""The tables of docs/hostile-input.md, from the cases of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import apr

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = Path(__file__).parents[2] / "docs" / "hostile-input.md"


def part_of(path: Path, **keys: str | bytes) -> str:
    """The part of a file under which its report lists what is wrong."""
    (wrong,) = [check.name for check in apr.verify(path, **keys).checks if check.passed is False]
    return wrong


def table(lies: Iterable[tuple[str, str, str, int]], parts: list[str]) -> list[str]:
    """Rows of (part, error, case, byte), the parts in the order of the file."""
    rows: dict[tuple[str, str], list[str]] = {}
    for part, kind, case, offset in lies:
        rows.setdefault((part, kind), []).append(f"{case} ({offset})")
    ordered = sorted(rows.items(), key=lambda row: parts.index(row[0][0]))
    return [f"| {part} | `{kind}` | {'; '.join(cases)} |" for (part, kind), cases in ordered]


def documented(heading: str) -> list[str]:
    """The rows of the table under a heading of the page."""
    _, found, section = PAGE.read_text().partition(f"\n### {heading}\n")
    assert found, heading
    rows = [
        line for line in section.partition("\n### ")[0].partition("\n## ")[0].splitlines() if line[:1] == "|"
    ]
    return rows[2:]

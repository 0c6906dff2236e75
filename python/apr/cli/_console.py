"""How commands print for people: colors and wrapping in a terminal, plain whole lines in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

# Wider than any row: what is piped is neither wrapped nor cut.
_PIPE_WIDTH = 1 << 16
# Rows that a terminal shows folded; more are printed as they are.
_FOLDED = 200


def console() -> Console:
    """Standard output."""
    out = Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    return out


def table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table with these columns, numbers aligned to the right; without any, rows alone."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(texts))
    for name in texts:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, overflow="fold", justify="right")
    return made


def show(rows: Table) -> None:
    """Print a table on standard output, in a pipe without the blanks that fill its last column."""
    out = console()
    if out.is_terminal:
        out.print(rows)
        return
    with out.capture() as text:
        out.print(rows)
    print(*(line.rstrip() for line in text.get().splitlines()), sep="\n")


def listing(texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under these columns, numbers aligned to the right; as fast as they are formatted.

    In a terminal long cells are folded, where that is worth a millisecond a row.
    """
    if console().is_terminal and len(rows) <= _FOLDED:
        folded = table(*texts, numbers=numbers)
        for row in rows:
            folded.add_row(*row)
        show(folded)
        return
    heading = [*texts, *numbers]
    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = [
            " " * (width - cell_len(cell)) + cell
            if n >= len(texts)
            else cell + " " * (width - cell_len(cell))
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Text from a file, with what would steer a terminal escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

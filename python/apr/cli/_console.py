"""How commands print for people: colors and wrapping in a terminal, plain whole lines in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

# Wider than any row, so that rich neither wraps nor cuts what another program reads.
_PIPE_WIDTH = 1 << 16
# rich takes about a millisecond for each row of a table. Longer listings are formatted here instead.
_MAX_TABLE_ROWS = 200


def console() -> Console:
    """Return a console on standard output that prints text as it is, without markup or highlighting."""
    out = Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    return out


def progress_bar() -> Progress:
    """Return a bar on standard error that disappears at the end, and shows nothing outside a terminal."""
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table with text columns and right-aligned number columns; without any, no heading."""
    rows = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(texts))
    for name in texts:
        # Folded and not cut: a tensor's name must be there whole, to be copied.
        rows.add_column(name, overflow="fold")
    for name in numbers:
        rows.add_column(name, overflow="fold", justify="right")
    return rows


def show(rows: Table) -> None:
    """Print a table on standard output."""
    out = console()
    if out.is_terminal:
        out.print(rows)
        return
    # rich fills the last column with blanks; in a pipe they would end up in files and in other programs.
    with out.capture() as text:
        out.print(rows)
    print(*(line.rstrip() for line in text.get().splitlines()), sep="\n")


def listing(texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under text columns and right-aligned number columns, however many rows there are.

    Args:
        texts: headings of the text columns.
        numbers: headings of the number columns, which follow.
        rows: a cell for each column.
    """
    if console().is_terminal and len(rows) <= _MAX_TABLE_ROWS:
        folded = table(*texts, numbers=numbers)
        for row in rows:
            folded.add_row(*row)
        show(folded)
        return
    heading = [*texts, *numbers]
    # Width on the screen, which differs from the number of characters for East Asian text.
    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = []
        for n, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - cell_len(cell))
            cells.append(cell + padding if n < len(texts) else padding + cell)
        print("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Return text from a file with control characters escaped, so that it cannot act on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

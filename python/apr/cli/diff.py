"""`apr diff`: what differs between two files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import tyro

from apr.cli._console import console, printable
from apr.container.diff import diff
from apr.errors import EXIT_REFUSED, UsageError


@dataclass(frozen=True)
class Command:
    """Compare two files: metadata, names, dtypes, shapes and values.

    Without --atol every bit must be equal; with it, values may differ by that much, and NaN equals NaN.
    Exits 0 where they are the same, 5 where they differ.

    Example: apr diff before.apr after.apr --atol 1e-6
    """

    a: Annotated[Path, tyro.conf.Positional]
    """An .apr file."""
    b: Annotated[Path, tyro.conf.Positional]
    """Another."""
    atol: float | None = None
    """The absolute difference up to which values count as equal."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print what differs."""
        if self.atol is not None and not 0 <= self.atol < inf:
            raise UsageError(f"--atol must be a finite number, 0 or more, not {self.atol}")
        found = diff(self.a, self.b, atol=self.atol)
        if self.json:
            print(json.dumps(found.to_dict()))
        else:
            verdict, *lines = map(printable, found.lines())
            console().print(verdict, style="bold green" if found.same else "bold red")
            for line in lines:
                console().print(line)
        return 0 if found.same else EXIT_REFUSED

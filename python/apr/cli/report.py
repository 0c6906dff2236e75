"""`apr report`: write an HTML page about a run, or about two runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.cli._console import printable
from apr.errors import UsageError
from apr.report import write_comparison, write_report


@dataclass(frozen=True)
class Command:
    """Write one HTML page about a training run: what happened, curves, gates, options, data and versions.

    The page is a single file that needs no network. It works for runs that are still training, and for those
    that were interrupted, killed or refused. With --compare, the curves of two runs are drawn over each
    other, and what differs between the runs is listed.

    Example: apr report runs/first

    Example: apr report --compare runs/first runs/second both.html
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR… [OUT.html]")]
    """The run directory, or two of them with --compare, and the file to write: by default report.html in the
    run directory, or comparison.html in that of the second run. An earlier page is replaced."""
    compare: bool = False
    """Compare two runs."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Write the page and print its path."""
        directories = 2 if self.compare else 1
        if len(self.paths) not in {directories, directories + 1}:
            what = "two run directories with --compare" if self.compare else "one run directory"
            hint = "; to compare two runs, pass --compare" if len(self.paths) > directories else ""
            raise UsageError(f"pass {what} and at most one file to write, not {len(self.paths)} paths{hint}")
        if len(self.paths) > directories and self.paths[-1].is_dir():
            hint = "is a directory, not a file to write; to compare two runs, pass --compare"
            raise UsageError(f"{self.paths[-1]}: {hint}", path=self.paths[-1])
        page = (write_comparison if self.compare else write_report)(*self.paths)
        print(json.dumps({"report": str(page)}) if self.json else f"wrote {printable(str(page))}")
        return 0

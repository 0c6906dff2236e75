"""`apr verify`: check every byte of model files."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from apr.cli._console import console, printable, progress_bar, show, table
from apr.cli._keys import KeyFlags
from apr.container.report import Report
from apr.container.verify import verify
from apr.errors import EXIT_NOT_VALID, EXIT_REFUSED, UsageError, exit_code, message

if TYPE_CHECKING:
    from apr.container.legacy.keys import Keys

_MARKS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "yellow")}


@dataclass(frozen=True)
class Command(KeyFlags):
    """Check every byte of model files: header, metadata, index, tensor bounds, and the CRC32 of the file.

    For a signed file, the report shows whether a trusted key made the signature, or only the key stored in
    the file itself. The payload of an encrypted file is checked if its key is given.

    A file without a footer checksum passes, and its report shows that its bytes cannot be verified. The exit
    code is 3 for a missing file, 4 for a file that cannot be opened, 5 if a check failed, and the highest of
    these for several files.

    Example: apr verify runs/*/ckpt/*.apr
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE…")]
    """The .apr files. An index or a directory stands for all files of the model."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print the report of each file."""
        if not self.files:
            raise UsageError("no file given; pass at least one .apr file")
        rows, code, keys = [], 0, self.keys()
        for file in self.files:
            try:
                # A missing file does not keep the others from being checked.
                report = _verify(file, keys)
            except OSError as error:
                code = max(code, exit_code(error))
                rows.append({"file": str(file), "ok": False, "opened": False, "error": message(error)})
                print(f"apr verify: error: {message(error)}", file=sys.stderr)
                continue
            rows.append(report.to_dict())
            if not report.opened:
                code = max(code, EXIT_NOT_VALID)
                reason = report.checks[-1].detail
                print(f"apr verify: error: {printable(f'{file}: {reason}')}", file=sys.stderr)
                continue
            code = max(code, 0 if report.ok else EXIT_REFUSED)
            if not self.json:
                _show(report)
        if self.json:
            print(json.dumps({"ok": code == 0, "files": rows}))
        return code


def _verify(file: Path, keys: Keys) -> Report:
    with progress_bar() as bar:
        task = bar.add_task(printable(str(file)), total=None)
        return verify(
            file, on_progress=lambda done, total: bar.update(task, completed=done, total=total), **keys
        )


def _show(report: Report) -> None:
    verdict, style = ("ok", "bold green") if report.ok else ("FAILED", "bold red")
    console().print(f"{printable(report.path)}: {verdict}", style=style)
    rows = table()
    for check in report.checks:
        mark, style = _MARKS[check.passed]
        rows.add_row(f"  {mark}", check.name, printable(check.detail), style=style)
    show(rows)

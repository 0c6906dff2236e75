"""`apr verify`: every check, byte for byte."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from apr.cli._console import console, printable, show, table
from apr.cli._keys import KeyFlags
from apr.container.report import Report
from apr.container.verify import verify
from apr.errors import EXIT_NOT_VALID, EXIT_REFUSED, UsageError, exit_code, message

if TYPE_CHECKING:
    from apr.container.legacy.keys import Keys

_STYLES = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "yellow")}


@dataclass(frozen=True)
class Command(KeyFlags):
    """Check files byte for byte: header, metadata, index, bounds, and the CRC32 of every byte.

    Of a signed file the report says whether the signature is by a trusted key, or only fits the key in the
    file. The payload of an encrypted one is checked where its key is given.

    A file without a footer is fine, and its line says that its bytes cannot be verified. Exits 3 for a
    missing file, 4 for one that cannot be opened, 5 where a check failed: the highest of several files.

    Example: apr verify runs/*/ckpt/*.apr
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE…")]
    """The .apr files; an index or directory stands for several."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print the report of each file."""
        if not self.files:
            raise UsageError("name at least one file")
        rows, code, keys = [], 0, self.keys()
        for file in self.files:
            try:
                report = _verify(file, keys)
            except OSError as error:
                code = max(code, exit_code(error))
                rows.append({"file": str(file), "ok": False, "opened": False, "error": message(error)})
                print(f"apr verify: error: {message(error)}", file=sys.stderr)
                continue
            code = max(code, _code(report))
            rows.append(report.to_dict())
            if not report.opened:
                wrong = report.checks[-1]
                print(f"apr verify: error: {printable(f'{file}: {wrong.detail}')}", file=sys.stderr)
            elif not self.json:
                _show(report)
        if self.json:
            print(json.dumps({"ok": code == 0, "files": rows}))
        return code


def _verify(file: Path, keys: Keys) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(printable(str(file)), total=None)
        return verify(
            file, on_progress=lambda read, total: bar.update(task, completed=read, total=total), **keys
        )


def _code(report: Report) -> int:
    return 0 if report.ok else EXIT_REFUSED if report.opened else EXIT_NOT_VALID


def _show(report: Report) -> None:
    verdict = "ok" if report.ok else "FAILED"
    console().print(f"{printable(report.path)}: {verdict}", style="bold green" if report.ok else "bold red")
    rows = table()
    for check in report.checks:
        mark, style = _STYLES[check.passed]
        rows.add_row(f"  {mark}", check.name, printable(check.detail), style=style)
    show(rows)

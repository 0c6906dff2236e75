"""`apr verify`: check model files of any format."""

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
from apr.errors import EXIT_NOT_VALID, EXIT_REFUSED, UsageError, exit_code, message
from apr.formats.verify import verify

if TYPE_CHECKING:
    from apr.container.legacy.keys import Keys

_MARKS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "yellow")}


@dataclass(frozen=True)
class Command(KeyFlags):
    """Check model files. Of an .apr file every byte: header, metadata, index, tensor bounds, and the CRC32.

    safetensors and GGUF files store no checksum. Their structure is checked: header, dtypes, sizes, bounds,
    overlaps, and an index against its files. After `apr seal`, every byte of any file is checked against
    apr-seal.json, and the report names the tensors that changed.

    For a signed file, the report shows whether a trusted key made the signature, or only the key stored in
    the file itself. The payload of an encrypted file is checked if its key is given.

    A file without a checksum passes, and its report shows that its bytes cannot be verified. The exit
    code is 3 for a missing file, 4 for a file that cannot be opened, 5 if a check failed, and the highest of
    these for several files.

    Example: apr verify runs/*/ckpt/*.apr
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE…")]
    """The .apr, safetensors or GGUF files. An index or a directory stands for all files of the model, and
    apr-seal.json for all files that it lists."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print the report of each file."""
        if not self.files:
            raise UsageError("no file given; pass at least one model file")
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
                # The part that keeps the file from opening comes last; the checks of a seal follow it.
                broken = [check for check in report.checks if check.name != "seal"] or report.checks
                sealed = [check for check in report.checks if check.name == "seal" and not check.passed]
                for check in dict.fromkeys([broken[-1], *sealed]):
                    print(f"apr verify: error: {printable(f'{file}: {check.detail}')}", file=sys.stderr)
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

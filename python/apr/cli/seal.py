"""`apr seal`: record the size and checksums of model files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.filesize import decimal

from apr.cli._console import console, printable, progress_bar
from apr.errors import UsageError
from apr.formats.seal import seal
from apr.plurals import counted

if TYPE_CHECKING:
    from apr.formats.seal import Seal


@dataclass(frozen=True)
class Command:
    """Record the size and the CRC32 of every file and every tensor in apr-seal.json, beside the files.

    `apr verify` then checks every byte against it and names the tensors that changed. It works for files of
    any format, also for those without checksums of their own. A CRC32 finds accidents; it does not keep
    somebody from changing a file and its seal.

    A seal that is already there keeps the records of other files.

    Example: apr seal SmolLM2-135M/ && apr verify SmolLM2-135M/
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH…")]
    """The files. An index stands for the files that it lists too, a directory for all files in it."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Seal each path and print what was recorded."""
        if not self.paths:
            raise UsageError("no path given; pass at least one model file or directory")
        rows = []
        for path in self.paths:
            sealed = _seal(path)
            files = sealed.files.values()
            tensors, size = sum(len(file.tensors) for file in files), sum(file.size for file in files)
            rows.append(
                {
                    "seal": str(sealed.path),
                    "files": sorted(sealed.files),
                    "tensors": tensors,
                    "size_bytes": size,
                }
            )
            if not self.json:
                what = f"{counted(len(files), 'file')}, {counted(tensors, 'tensor')}, {decimal(size)}"
                console().print(f"{printable(str(sealed.path))}: sealed {what}")
        if self.json:
            print(json.dumps({"sealed": rows}))
        return 0


def _seal(path: Path) -> Seal:
    with progress_bar() as bar:
        task = bar.add_task(printable(str(path)), total=None)
        return seal(path, on_progress=lambda done, total: bar.update(task, completed=done, total=total))

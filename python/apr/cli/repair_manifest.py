"""`apr repair-manifest`: rebuild the manifest of a shard directory, and check its shards."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff as Flag

from apr.data.rebuild import repair
from apr.errors import EXIT_REFUSED, UsageError

if TYPE_CHECKING:
    from apr.data.repair_report import RepairReport


@dataclass(frozen=True)
class Command:
    """Rebuild the manifest of a shard directory, for example after an interrupted encoding.

    A manifest that matches the files is not changed. Shards are changed only if a flag says so.

    Example: apr repair-manifest shards --verify --tokenizer model.apr
    """

    directory: Annotated[Path | None, tyro.conf.Positional] = None
    """The shard directory."""
    output: Path | None = None
    """Same as PATH, for compatibility with other tools."""
    tokenizer: Path | None = None
    """The tokenizer of the shards: a tokenizer directory, a tokenizer.json, an .apr or .gguf file."""
    verify: Annotated[bool, Flag] = False
    """Read every id and check hashes, vocabulary bounds, and whether the ids look like text (exit code 5 "
    "if not)."""
    no_hash: Annotated[bool, Flag] = False
    """With --verify: do not compute the SHA-256 of each shard, which takes most of the time."""
    force: Annotated[bool, Flag] = False
    """Replace a manifest that does not match the shards; the old one is kept as manifest.json.bak."""
    dry_run: Annotated[bool, Flag] = False
    """Print what would be done, without changing anything."""
    drop_empty: Annotated[bool, Flag] = False
    """Rename empty shards at the end, so that they are no longer part of the directory's shards."""
    truncate_torn: Annotated[bool, Flag] = False
    """Truncate the last shard if it ends in the middle of an id. The removed bytes are kept in a separate "
    "file."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Repair, print the report, and return the exit code."""
        directory = self.directory or self.output
        if directory is None or (self.directory and self.output):
            raise UsageError("pass exactly one shard directory, as in apr repair-manifest DIR")
        if self.no_hash and not self.verify:
            raise UsageError("--no-hash has no effect without --verify; add --verify or leave it out")
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            # Without --verify no id is read, and there is no progress to show.
            task = bar.add_task("reading", total=None, visible=self.verify)
            report = repair(
                directory,
                self.tokenizer,
                verify=self.verify,
                hashes=not self.no_hash,
                force=self.force,
                dry_run=self.dry_run,
                drop_empty=self.drop_empty,
                truncate_torn=self.truncate_torn,
                on_progress=lambda read, total: bar.update(task, completed=read, total=total),
            )
        print(json.dumps(_json(report)) if self.json else report)
        for problem in report.problems:
            print(f"apr repair-manifest: error: {report.path}: {problem}", file=sys.stderr)
        return 0 if report.ok else EXIT_REFUSED


def _json(report: RepairReport) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "outcome": report.outcome,
        "ok": report.ok,
        "problems": list(report.problems),
        "done": list(report.done),
        "manifest": report.manifest,
        "scan": None if report.scan is None else report.scan.to_dict(),
    }

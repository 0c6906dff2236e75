"""`apr repair-manifest`: the manifest of a shard directory, and whether its shards are what they say."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.filesize import decimal
from tyro.conf import FlagCreatePairsOff as Flag

from apr.data.listing import ID_SIZE
from apr.data.manifest import MANIFEST
from apr.data.rebuild import RepairReport, repair
from apr.errors import EXIT_REFUSED, UsageError
from apr.plurals import counted

_LEFT_ALONE = "agrees with the files, left alone"
_NOT_AT_FAULT = "left alone; its counts agree with the files, what is wrong is in the shards"
_SCAN_KEPT = "agrees with the files; what was read is kept in it (scan), for the run that trains on them"
# Shards that get a line each; of more, the first and the last.
_ROWS = 6


@dataclass(frozen=True)
class Command:
    """Rebuild the manifest of a shard directory whose encoder died; --verify reads every id.

    A manifest that agrees with the files is left alone. No shard is changed unless that is asked for.

    Example: apr repair-manifest shards --verify --tokenizer model.apr
    """

    directory: Annotated[Path | None, tyro.conf.Positional] = None
    """The shard directory."""
    output: Path | None = None
    """The shard directory, as the ecosystem's tool spells it."""
    tokenizer: Path | None = None
    """What the shards were made with: a tokenizer directory, a tokenizer.json, an .apr or .gguf."""
    verify: Annotated[bool, Flag] = False
    """Read every id: hashes, ids beyond the vocabulary, whether it can be text. Exits 5 if not."""
    no_hash: Annotated[bool, Flag] = False
    """With --verify: leave out the SHA-256 of each shard, which takes most of the time."""
    force: Annotated[bool, Flag] = False
    """Replace a manifest that disagrees; the old one is kept as manifest.json.bak."""
    dry_run: Annotated[bool, Flag] = False
    """Change nothing, say what would be done."""
    drop_empty: Annotated[bool, Flag] = False
    """Move empty shards at the end aside."""
    truncate_torn: Annotated[bool, Flag] = False
    """Cut a torn last shard where its whole tokens end, and keep the cut bytes aside."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Repair, and say what was found."""
        directory = self.directory or self.output
        if directory is None or (self.directory and self.output):
            raise UsageError("name the shard directory once: apr repair-manifest DIR")
        if self.no_hash and not self.verify:
            raise UsageError("--no-hash belongs to --verify")
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
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
        print(json.dumps(_json(report)) if self.json else _text(report))
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


def _text(report: RepairReport) -> str:
    tokens = report.total_tokens
    lines = [
        f"{report.path}: {counted(len(report.shards), 'shard')}, {counted(tokens, 'token')}, "
        f"{decimal(ID_SIZE * tokens)}"
    ]
    lines += _scan_lines(report)
    lines += report.done
    lines.append(_outcome(report))
    return "\n".join(lines)


def _scan_lines(report: RepairReport) -> list[str]:
    found, tokenizer = report.scan, report.tokenizer
    if found is None:
        return []
    tokens = {shard.name: shard.tokens for shard in report.shards}
    rows = [
        f"  {shard.name}  {tokens[shard.name]:>12,} tokens  highest id {shard.max_id:>7}  "
        f"sha256 {'not asked for' if shard.sha256 is None else f'{shard.sha256[:16]}…'}"
        for shard in found.shards
    ]
    if len(rows) > _ROWS:
        rows = [*rows[: _ROWS - 1], f"  … {len(rows) - _ROWS:,} more", rows[-1]]
    facts = {"entropy": f"{found.entropy_bits:.2f} bits a token"}
    facts["different ids"] = f"{found.distinct_ids:,}"
    repeats = (
        f"{found.repeated_share:.1%} of {found.windows:,} windows of 64 ids" if found.windows else "too short"
    )
    facts["repeats"] = repeats
    for token, times in found.most_frequent[:1]:
        known = tokenizer is not None and token < tokenizer.vocab_size
        shown = f" {tokenizer.decode([token])!r}" if tokenizer is not None and known else ""
        facts["most frequent"] = f"id {token}{shown}, {times / found.total_tokens:.2%} of all"
    if tokenizer is not None:
        within = "below" if found.max_id < tokenizer.vocab_size else "NOT below"
        facts["highest id"] = f"{found.max_id:,}, {within} the vocabulary's size of {tokenizer.vocab_size:,}"
        if tokenizer.eos_id is not None:
            eos = int(found.counts[tokenizer.eos_id]) if tokenizer.eos_id < len(found.counts) else 0
            facts["ends of text"] = f"{eos:,} ({tokenizer.eos_token}, id {tokenizer.eos_id})"
    if found.corpus_sha256 is not None:
        facts["corpus sha256"] = found.corpus_sha256
    facts["verdict"] = "fit to train on" if report.ok else "NOT fit to train on, see the errors"
    return rows + [f"  {name:<14} {value}" for name, value in facts.items()]


def _outcome(report: RepairReport) -> str:
    if report.outcome == "written":
        how = "finished: its encoding was cut off" if report.manifest.get("truncated") else "rebuilt"
        shards, tokens = report.manifest["shard_count"], report.manifest["total_tokens"]
        return f"{MANIFEST}: {how}, {counted(shards, 'shard')}, {counted(tokens, 'token')}"
    alone = _LEFT_ALONE if report.ok else _NOT_AT_FAULT
    said = {"left alone": alone, "scan kept": _SCAN_KEPT}.get(report.outcome, report.outcome)
    return f"{MANIFEST}: {said}"

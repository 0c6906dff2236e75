"""The result of a repair, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apr.data.listing import ID_SIZE, Shard
from apr.data.manifest import MANIFEST
from apr.plurals import counted

if TYPE_CHECKING:
    from pathlib import Path

    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.scan import FullScan

Outcome = Literal["written", "left alone", "scan kept", "would be written", "not written"]

# The most shards that are listed one per line. If there are more, the first ones and the last one are listed.
_ROWS = 6


@dataclass(frozen=True)
class RepairReport:
    """The result of a repair; `print(report)` is what `apr repair-manifest` prints."""

    path: Path
    shards: tuple[Shard, ...]
    manifest: dict[str, Any]
    """The manifest as it is now. After a dry run, or if there are problems: as it would have been written."""
    outcome: Outcome
    """What happened to the manifest. `scan kept`: it agrees with the files, and the scan was added to it."""
    done: tuple[str, ...]
    """Changes to shard files, one line each; none if there are problems."""
    scan: FullScan | None
    """Summary of all ids, if it was asked for."""
    tokenizer: LoadedTokenizer | None
    problems: tuple[str, ...]
    """What is wrong with the contents, one line each."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found in the contents, as far as they were read."""
        return not self.problems

    @property
    def total_tokens(self) -> int:
        """Number of ids in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def __str__(self) -> str:
        from rich.filesize import decimal

        tokens = self.total_tokens
        lines = [
            f"{self.path}: {counted(len(self.shards), 'shard')}, {counted(tokens, 'token')}, "
            f"{decimal(ID_SIZE * tokens)}"
        ]
        if self.scan is not None:
            lines += self._shard_lines(self.scan)
            lines += [f"  {name:<14} {value}" for name, value in self._facts(self.scan).items()]
        lines += self.done
        lines.append(f"{MANIFEST}: {self._outcome_text()}")
        return "\n".join(lines)

    def _shard_lines(self, scan: FullScan) -> list[str]:
        tokens = {shard.name: shard.tokens for shard in self.shards}
        lines = []
        for shard in scan.shards:
            sha256 = "not computed" if shard.sha256 is None else f"{shard.sha256[:16]}…"
            noun = "token " if tokens[shard.name] == 1 else "tokens"
            lines.append(
                f"  {shard.name}  {tokens[shard.name]:>12,} {noun}  "
                f"highest id {shard.max_id:>7}  sha256 {sha256}"
            )
        if len(lines) > _ROWS:
            lines = [*lines[: _ROWS - 1], f"  … {len(lines) - _ROWS:,} more", lines[-1]]
        return lines

    def _facts(self, scan: FullScan) -> dict[str, str]:
        tokenizer = self.tokenizer
        facts = {
            "entropy": f"{scan.entropy_bits:.2f} bits per token",
            "distinct ids": f"{scan.distinct_ids:,}",
            "repeats": "too short to measure",
        }
        if scan.windows:
            facts["repeats"] = f"{scan.repeated_share:.1%} of {counted(scan.windows, 'window')} of 64 ids"
        if scan.most_frequent:
            token, count = scan.most_frequent[0]
            text = ""
            if tokenizer is not None and token < tokenizer.vocab_size:
                text = f" {tokenizer.decode([token])!r}"
            facts["most frequent"] = f"id {token}{text}, {count / scan.total_tokens:.2%} of all tokens"
        if tokenizer is not None:
            relation = "below" if scan.max_id < tokenizer.vocab_size else "NOT below"
            facts["highest id"] = f"{scan.max_id:,}, {relation} the vocabulary size {tokenizer.vocab_size:,}"
            if tokenizer.eos_id is not None:
                count = scan.count(tokenizer.eos_id)
                facts["end of text"] = f"{count:,} ({tokenizer.eos_token}, id {tokenizer.eos_id})"
        if scan.corpus_sha256 is not None:
            facts["corpus sha256"] = scan.corpus_sha256
        facts["verdict"] = "suitable for training" if self.ok else "NOT suitable for training; see the errors"
        return facts

    def _outcome_text(self) -> str:
        if self.outcome == "written":
            how = "closed an interrupted encoding" if self.manifest.get("truncated") else "rebuilt"
            shards, tokens = self.manifest["shard_count"], self.manifest["total_tokens"]
            return f"{how}, {counted(shards, 'shard')}, {counted(tokens, 'token')}"
        if self.outcome == "scan kept":
            return "matches the files; scan added, so that training does not read the shards again"
        if self.outcome == "left alone":
            if self.ok:
                return "matches the files, unchanged"
            return "unchanged; its counts match the files, but the shards have problems"
        return self.outcome

"""The manifest of a shard directory, rebuilt from its shards."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from apr.data.corpus_check import corpus_problems
from apr.data.listing import ID_SIZE, Shard, shard_files
from apr.data.manifest import (
    MANIFEST,
    SCHEMA,
    SHARD_WRITERS,
    agreeing,
    check_manifest,
    read_manifest,
    shard_rows,
    write_manifest,
)
from apr.data.scan import kept_scan, scan_shards
from apr.data.tokenizers import LoadedTokenizer, load_tokenizer
from apr.errors import FormatError, RefusedError
from apr.files import sync_directory, write_atomically
from apr.held import held

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from apr.data.scan import FullScan

_REBUILT = "rebuilt from the shards; how many documents they hold, and whether they are all, is not known"
_KEPT = "what it said agreed with the files and is kept"
_FINISHED = "an encoding that was cut off, finished with the shards that are there"


@dataclass(frozen=True)
class RepairReport:
    """What was found and done."""

    path: Path
    shards: tuple[Shard, ...]
    manifest: dict[str, Any]
    """As it stands now; as it would stand after a dry run, or if the shards were sound."""
    outcome: Literal["written", "left alone", "scan kept", "would be written", "not written"]
    """`scan kept`: it agrees with the files, and what was read of them was added to it."""
    done: tuple[str, ...]
    """Changes to files other than the manifest, a line each; none where anything is wrong."""
    scan: FullScan | None
    """What is in the shards, if that was asked for."""
    tokenizer: LoadedTokenizer | None
    problems: tuple[str, ...]
    """What is wrong with the contents, a line each."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the contents, as far as they were read."""
        return not self.problems

    @property
    def total_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)


def repair(
    path: str | PathLike[str],
    tokenizer: str | PathLike[str] | None = None,
    *,
    verify: bool = False,
    hashes: bool = True,
    force: bool = False,
    dry_run: bool = False,
    drop_empty: bool = False,
    truncate_torn: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Write the manifest that a shard directory lacks; leave alone one that agrees with the files.

    What `verify` with `hashes` finds is kept in it all the same: a run that trains on the shards need not
    read them again.

    No contents are read and no shard is changed unless that is asked for.

    Args:
        path: the shard directory.
        tokenizer: what the shards were made with: gives the manifest its vocabulary's size.
        verify: read all ids: highest id, hashes, ids beyond the vocabulary, whether it can be text. Where
            that fails, the report has `problems` and nothing is written, cut or moved.
        hashes: whether `verify` takes each shard's SHA-256, which is most of its time.
        force: replace a manifest that disagrees; the old one is kept as manifest.json.bak.
        dry_run: change nothing.
        drop_empty: move empty shards at the end aside.
        truncate_torn: cut the last shard where its whole tokens end; the cut bytes are kept aside.
        on_progress: called with tokens read and tokens in all.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards, a file that no shard can be, a manifest that disagrees (without `force`); an
            encoding or another repair is writing there.
    """
    path = Path(path)
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    how = _How(tokenizer, loaded, verify, hashes, force, dry_run, drop_empty, truncate_torn)
    if dry_run:
        return _repair(path, how, on_progress)
    # What is decided upon must still be so when it is written.
    with held(path, SHARD_WRITERS, "wait for it, or see what would be done with --dry-run"):
        return _repair(path, how, on_progress)


@dataclass(frozen=True)
class _How:
    """The arguments of `repair`."""

    tokenizer: str | PathLike[str] | None
    loaded: LoadedTokenizer | None
    verify: bool
    hashes: bool
    force: bool
    dry_run: bool
    drop_empty: bool
    truncate_torn: bool


def _repair(path: Path, how: _How, on_progress: Callable[[int, int], None] | None) -> RepairReport:
    loaded, force, dry_run = how.loaded, how.force, how.dry_run
    tidy = _Tidying.plan(path, drop_empty=how.drop_empty, truncate_torn=how.truncate_torn)
    old, differences = _found(path, tidy.shards, loaded)
    if differences and not force:
        raise RefusedError(
            f"{path / MANIFEST}: disagrees{' with the files' * (loaded is None)}: {'; '.join(differences)}: "
            "--force replaces it and keeps the old one as manifest.json.bak"
        )
    found = agreeing(old, tidy.shards)
    scanned = None
    if how.verify:
        limit = loaded.vocab_size if loaded is not None else found.get("vocab_size")
        scanned = tidy.scan(vocab_size=limit, hashes=how.hashes, on_progress=on_progress)
    lies = {} if scanned is None else _lies(scanned, loaded, found)
    wrong = () if scanned is None else tuple(_wrong(scanned, loaded, found | {"scan": old.get("scan")}))
    if not force:
        wrong += tuple(f"{MANIFEST}: {lie}: --force writes what is so" for lie in lies.values())
    if not dry_run and not wrong:
        tidy.apply()
        scanned = None if scanned is None else tidy.stamped(scanned)
    done = () if wrong else tidy.lines
    report = RepairReport(path, tuple(tidy.shards), found, "left alone", done, scanned, loaded, wrong)
    unfinished = old.get("complete") is False
    lacks = loaded is not None and any(found.get(key) is None for key in _of_tokenizer(loaded, how.tokenizer))
    if found and not unfinished and not force and not lacks:
        if lies:
            return replace(report, outcome="not written")
        return report if wrong or dry_run else _scan_kept(report)
    base = {key: value for key, value in found.items() if key != "progress" and key not in lies}
    report = replace(report, manifest=_rebuilt(base, report, how.tokenizer, unfinished=unfinished))
    if wrong:
        return replace(report, outcome="not written")
    if dry_run:
        return replace(report, outcome="would be written")
    if (path / MANIFEST).exists():
        write_atomically(_free(path / f"{MANIFEST}.bak"), (path / MANIFEST).read_bytes())
    write_manifest(path, report.manifest)
    return replace(report, outcome="written")


def _scan_kept(report: RepairReport) -> RepairReport:
    """The manifest agrees with the files: what was read of them is all that may be added."""
    scanned = report.scan
    if scanned is None or scanned.corpus_sha256 is None or scanned.kept == kept_scan(report.manifest):
        return report
    report = replace(report, manifest={**report.manifest, "scan": scanned.to_dict()}, outcome="scan kept")
    write_manifest(report.path, report.manifest)
    return report


@dataclass(frozen=True)
class _Tidying:
    """What has to happen to shards before the directory is one, and the shards it then has."""

    shards: list[Shard]
    empty: list[Path]
    cut: dict[Path, int]
    """Where whole tokens end in a torn shard."""

    @classmethod
    def plan(cls, path: Path, *, drop_empty: bool, truncate_torn: bool) -> _Tidying:
        files = [(path / name, size) for name, size in shard_files(path)]
        whole = [(file, size - size % ID_SIZE) for file, size in files]
        cut = {file: kept for (file, size), (_, kept) in zip(files, whole, strict=True) if kept != size}
        last = max((i for i, (_, size) in enumerate(whole) if size), default=-1)
        empty = [file for file, size in whole if not size]
        for file, kept in cut.items():
            torn = f"{file}: torn, its whole tokens end at byte {kept} of {kept + file.stat().st_size % 4}"
            if file != files[-1][0]:
                raise RefusedError(f"{torn}: only a last shard can be cut there, encode this one again")
            if not truncate_torn:
                raise RefusedError(f"{torn}: --truncate-torn cuts it there and keeps the rest aside")
        if last < 0:
            raise RefusedError(f"{files[0][0]}: an empty shard, and no other holds a token: encode again")
        for file in empty:
            if file in [name for name, _ in whole[:last]]:
                raise RefusedError(
                    f"{file}: an empty shard between others: encode it again, or renumber them"
                )
            if not drop_empty:
                raise RefusedError(f"{file}: an empty shard: --drop-empty moves it aside")
        shards = [Shard(file.name, path, size // ID_SIZE) for file, size in whole[: last + 1]]
        return cls(shards, empty, cut)

    @property
    def lines(self) -> tuple[str, ...]:
        """What happens, a line each."""
        moved = [f"{file.name}: empty, moved aside as {file.name}.empty" for file in self.empty]
        torn = [
            f"{file.name}: cut at byte {kept}, the rest is in {file.name}.torn"
            for file, kept in self.cut.items()
        ]
        return (*torn, *moved)

    def scan(
        self, *, vocab_size: int | None, hashes: bool, on_progress: Callable[[int, int], None] | None
    ) -> FullScan:
        """What will be in the shards; nothing of the directory changes: a torn one is read from a copy."""
        with TemporaryDirectory(prefix="apr-") as aside:
            readable = []
            for shard in self.shards:
                if shard.path in self.cut:
                    whole = Path(aside) / shard.name
                    shutil.copyfile(shard.path, whole)
                    os.truncate(whole, self.cut[shard.path])
                    shard = shard._replace(directory=Path(aside))  # noqa: PLW2901
                readable.append(shard)
            return self.stamped(
                scan_shards(readable, vocab_size=vocab_size, hashes=hashes, on_progress=on_progress)
            )

    def stamped(self, scanned: FullScan) -> FullScan:
        """The scan with the times that cut shards themselves have now."""
        cut = {file.name: file for file in self.cut}
        rows = [
            replace(row, mtime_ns=cut[row.name].stat().st_mtime_ns) if row.name in cut else row
            for row in scanned.shards
        ]
        return replace(scanned, shards=tuple(rows))

    def apply(self) -> None:
        """Cut and move; nothing is lost, whenever this is killed."""
        for file, kept in self.cut.items():
            with file.open("r+b") as shard:
                shard.seek(kept)
                write_atomically(_free(file.with_name(f"{file.name}.torn")), shard.read())
                shard.truncate(kept)
                os.fsync(shard.fileno())
        for file in self.empty:
            file.rename(_free(file.with_name(f"{file.name}.empty")))
            sync_directory(file.parent)


def _free(path: Path) -> Path:
    """The path, or with a number behind it if something is there."""
    taken = 1
    while (free := path if taken == 1 else path.with_name(f"{path.name}-{taken}")).exists():
        taken += 1
    return free


def _found(
    path: Path, shards: list[Shard], loaded: LoadedTokenizer | None
) -> tuple[dict[str, Any], list[str]]:
    """The manifest that is there, empty if none is, and where it disagrees with shards and tokenizer."""
    try:
        found = read_manifest(path)
    except FileNotFoundError:
        return {}, []
    except FormatError:
        return {}, ["no JSON object"]
    counted = found.get("shard_count")
    if found.get("complete") is False and isinstance(counted, int) and 0 <= counted < len(shards):
        # Killed between a shard and the manifest that counts it.
        differences = check_manifest(found, shards[:counted])
    else:
        differences = check_manifest(found, shards)
    if loaded is not None:
        says = {"vocab_size": loaded.vocab_size, "tokenizer_sha256": loaded.sha256}
        differences += [
            f"{key} is {found[key]!r}, the tokenizer's is {value!r}"
            for key, value in says.items()
            if found.get(key) not in (None, value)
        ]
    return found, differences


def _lies(scanned: FullScan, tokenizer: LoadedTokenizer | None, manifest: dict[str, Any]) -> dict[str, str]:
    """What a manifest says of the contents that they are not, a line for each key."""
    found = {}
    recorded, sha256 = manifest.get("corpus_sha256"), scanned.corpus_sha256
    if recorded is not None and sha256 is not None and recorded != sha256:
        found["corpus_sha256"] = f"corpus_sha256 is {recorded!r}, the shards' hashes give {sha256!r}"
    ends, eos_id = manifest.get("eos_token_count"), _eos_id(tokenizer, manifest)
    if ends is not None and eos_id is not None:
        counted = _count(scanned, eos_id)
        # A token that stands in texts too, where it was named as their end, is there more often.
        if ends > counted or (ends < counted and ends != _ends(manifest)):
            found["eos_token_count"] = (
                f"eos_token_count is {ends}, the shards hold id {eos_id} {counted} times"
            )
        ends = counted if "eos_token_count" in found else ends
    if ends is not None and _ours(manifest) and ends != _ends(manifest):
        found["total_documents"] = (
            f"total_documents is {manifest['total_documents']}, that would be {_ends(manifest)} ends of text "
            f"(eos_policy {manifest['eos_policy']!r}), not {ends}"
        )
    return found


def _ours(manifest: dict[str, Any]) -> bool:
    return str(manifest.get("producer_version")).startswith("apr ") and _ends(manifest) is not None


def _ends(manifest: dict[str, Any]) -> int | None:
    """How many ends of text an encoding of so many documents writes; None where it does not say."""
    documents = manifest.get("total_documents")
    if documents is None:
        return None
    ends = {"none": 0, "between": max(0, documents - 1), "after": documents}
    return ends.get(str(manifest.get("eos_policy")))


def _eos_id(tokenizer: LoadedTokenizer | None, manifest: dict[str, Any]) -> int | None:
    """The id that ends a text here: what it was encoded with, else its tokenizer's."""
    recorded: int | None = manifest.get("eos_token_id")
    return recorded if recorded is not None or tokenizer is None else tokenizer.eos_id


def _wrong(scanned: FullScan, tokenizer: LoadedTokenizer | None, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the contents of the shards."""
    found = [
        f"{beyond.shard}: id {beyond.token} at byte {beyond.index * ID_SIZE} is beyond the vocabulary"
        for beyond in scanned.beyond
    ]
    recorded = {row["name"]: row["sha256"] for row in shard_rows(manifest) if row.get("sha256")}
    before = kept_scan(manifest)
    if before is not None:
        now = {(shard.name, shard.size, shard.mtime_ns) for shard in scanned.shards}
        untouched = [shard for shard in before.shards if (shard.name, shard.size, shard.mtime_ns) in now]
        recorded = {shard.name: shard.sha256 for shard in untouched if shard.sha256} | recorded
    found += [
        f"{shard.name}: changed since its hash was recorded (SHA-256 {shard.sha256[:12]}…, "
        f"recorded {recorded[shard.name][:12]}…)"
        for shard in scanned.shards
        if shard.sha256 and recorded.get(shard.name, shard.sha256) != shard.sha256
    ]
    eos_id = tokenizer.eos_id if tokenizer is not None else manifest.get("eos_token_id")
    unk_id = tokenizer.unk_id if tokenizer is not None else manifest.get("unk_token_id")
    return found + corpus_problems(scanned, eos_id, unk_id)


def _rebuilt(
    base: dict[str, Any], report: RepairReport, tokenizer: str | PathLike[str] | None, *, unfinished: bool
) -> dict[str, Any]:
    loaded, scanned = report.tokenizer, report.scan
    made: dict[str, Any] = {}
    if loaded is not None:
        made |= _of_tokenizer(loaded, tokenizer)
        if base.get("tokenizer_sha256") == loaded.sha256 and base.get("eos_token_id") is not None:
            # It may have been encoded with another one than usual.
            made["eos_token_id"] = base["eos_token_id"]
    if scanned is not None:
        made["scan"] = scanned.to_dict()
        if scanned.corpus_sha256 is not None:
            made["corpus_sha256"] = scanned.corpus_sha256
        eos_id = made.get("eos_token_id", base.get("eos_token_id"))
        if eos_id is not None and base.get("eos_token_count") is None:
            made["eos_token_count"] = _count(scanned, eos_id)
    if unfinished or base.get("truncated"):
        made["truncated"] = True
    note = _FINISHED if made.get("truncated") else _KEPT if "total_documents" in base else _REBUILT
    return {
        **base,
        "schema": SCHEMA,
        "complete": True,
        "shard_count": len(report.shards),
        "total_tokens": report.total_tokens,
        "vocab_size": base.get("vocab_size"),
        "tokenizer_dir": base.get("tokenizer_dir"),
        **made,
        "repair": True,
        "repaired_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": "repair-manifest",
        "note": note,
    }


def _of_tokenizer(loaded: LoadedTokenizer, named: str | PathLike[str] | None) -> dict[str, Any]:
    found = {
        "vocab_size": loaded.vocab_size,
        "tokenizer_dir": None if named is None else os.fspath(named),
        "tokenizer_sha256": loaded.sha256,
        "eos_token_id": loaded.eos_id,
        "unk_token_id": loaded.unk_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _count(scanned: FullScan, token: int) -> int:
    return int(scanned.counts[token]) if token < len(scanned.counts) else 0

"""The manifest of a shard directory, rebuilt from its shards."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.data.identity import same_in_manifests
from apr.data.listing import ID_SIZE, Shard
from apr.data.manifest import (
    MANIFEST,
    SCHEMA,
    SHARD_WRITERS,
    check_manifest,
    read_manifest,
    still_valid,
    write_manifest,
)
from apr.data.repair_report import RepairReport
from apr.data.same_tokenizer import check_same_tokenizer, facts_of_shards, facts_of_tokenizer
from apr.data.shard_fixes import ShardFixes, free_name
from apr.errors import FormatError, RefusedError
from apr.files import write_atomically
from apr.held import held

# numpy, tokenizers and the scan are imported where they are used: without --verify a repair needs file sizes
# only, and takes less time than importing numpy does.
if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.scan import FullScan

# The manifest's `note`. Readers may show it; nothing depends on it. These texts are bytes of manifest.json,
# not messages. They keep the wording of earlier versions, so that the same repair writes the same bytes.
_NOTE_REBUILT = (
    "rebuilt from the shards; how many documents they hold, and whether they are all, is not known"
)
_NOTE_KEPT = "what it said agreed with the files and is kept"
_NOTE_FINISHED = "an encoding that was cut off, finished with the shards that are there"


@dataclass(frozen=True)
class _Options:
    """The arguments of `repair`."""

    tokenizer_path: str | PathLike[str] | None
    tokenizer: LoadedTokenizer | None
    verify: bool
    hashes: bool
    force: bool
    dry_run: bool
    drop_empty: bool
    truncate_torn: bool
    on_progress: Callable[[int, int], None] | None


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
    """Write the manifest that a shard directory lacks; leave alone a manifest that agrees with the files.

    The shards are neither read nor changed unless an argument asks for it. The scan that `verify` makes with
    `hashes` is added to the manifest even if that agrees with the files: training on the shards then does not
    read them a second time.

    Args:
        path: the shard directory.
        tokenizer: the tokenizer that the shards were encoded with; records the vocabulary's size and special
            ids in the manifest.
        verify: read all ids, and check the vocabulary's bounds, hashes, counts, and whether the ids can be
            text. If a check fails, the report has `problems`, and nothing is written, cut or moved.
        hashes: whether `verify` takes the SHA-256 of each shard, which takes most of its time.
        force: replace a manifest that disagrees with the files; the old one is kept as manifest.json.bak.
        dry_run: change nothing.
        drop_empty: move empty shards at the end aside.
        truncate_torn: cut a last shard that ends within an id; the bytes behind the cut are kept aside.
        on_progress: called with (tokens read, total tokens) from time to time.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a file that cannot be a shard; a manifest that disagrees with the files,
            without `force`; an encoding or another repair is writing to the directory.
        FormatError, UnsupportedError: the tokenizer cannot be read.
        OSError: reading or writing failed.
    """
    path = Path(path)
    loaded = None
    if tokenizer is not None:
        from apr.data.tokenizers import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    options = _Options(
        tokenizer_path=tokenizer,
        tokenizer=loaded,
        verify=verify,
        hashes=hashes,
        force=force,
        dry_run=dry_run,
        drop_empty=drop_empty,
        truncate_torn=truncate_torn,
        on_progress=on_progress,
    )
    if dry_run:
        return _repair(path, options)
    # The lock is held from reading to writing: what was decided upon must still be true when it is written.
    with held(path, SHARD_WRITERS, "wait for it, or pass --dry-run to see what a repair would do"):
        return _repair(path, options)


def _repair(path: Path, options: _Options) -> RepairReport:
    fixes = ShardFixes.plan(path, drop_empty=options.drop_empty, truncate_torn=options.truncate_torn)
    recorded = _recorded_manifest(path, fixes.shards, options)
    kept = still_valid(recorded, fixes.shards)
    scan: FullScan | None = None
    contradicted: dict[str, str] = {}
    problems: list[str] = []
    if options.verify:
        vocab_size = kept.get("vocab_size") if options.tokenizer is None else options.tokenizer.vocab_size
        scan = fixes.scan(vocab_size=vocab_size, hashes=options.hashes, on_progress=options.on_progress)
        contradicted = _contradicted_keys(kept, scan, options.tokenizer)
        problems = _content_problems(kept, recorded, scan, options.tokenizer, force=options.force)
        if not options.force:
            problems += [
                f"{MANIFEST}: {reason}; pass --force to correct it" for reason in contradicted.values()
            ]
    # Files are cut and moved only now: a failed check leaves the directory as it was.
    if not problems and not options.dry_run:
        fixes.apply()
        if scan is not None:
            scan = fixes.with_current_times(scan)
    report = RepairReport(
        path=path,
        shards=tuple(fixes.shards),
        manifest=kept,
        outcome="left alone",
        done=() if problems else fixes.lines,
        scan=scan,
        tokenizer=options.tokenizer,
        problems=tuple(problems),
    )
    # A manifest that agrees with the files is left alone unless there is something to add: the end of an
    # encoding that was cut off, the facts of a tokenizer, or a scan.
    unfinished = recorded.get("complete") is False
    lacks_tokenizer = any(kept.get(key) is None for key in _tokenizer_keys(options))
    if kept and not (unfinished or options.force or lacks_tokenizer):
        if contradicted:
            return replace(report, outcome="not written")
        return report if problems or options.dry_run else _keep_scan(report)

    # `progress` says where an unfinished encoding resumes, which means nothing in a finished one.
    true_keys = {key: value for key, value in kept.items() if key != "progress" and key not in contradicted}
    report = replace(report, manifest=_rebuilt(true_keys, report, options, unfinished=unfinished))
    if problems:
        return replace(report, outcome="not written")
    if options.dry_run:
        return replace(report, outcome="would be written")
    # The old manifest is kept, even if this repair replaces it without --force.
    if (path / MANIFEST).exists():
        write_atomically(free_name(path / f"{MANIFEST}.bak"), (path / MANIFEST).read_bytes())
    write_manifest(path, report.manifest)
    return replace(report, outcome="written")


def _recorded_manifest(path: Path, shards: list[Shard], options: _Options) -> dict[str, Any]:
    """Return the manifest of the directory, empty if it has none that is a JSON object.

    Raises:
        RefusedError: it disagrees with the shards or the tokenizer, and `force` was not given.
    """
    recorded: dict[str, Any] = {}
    differences: list[str] = []
    try:
        recorded = read_manifest(path)
    except FileNotFoundError:
        return recorded
    except FormatError:
        differences.append("not a JSON object")
    else:
        counted = recorded.get("shard_count")
        if recorded.get("complete") is False and isinstance(counted, int) and 0 <= counted < len(shards):
            # The encoder was killed after it wrote a shard and before it wrote the manifest that counts it.
            differences = check_manifest(recorded, shards[:counted])
        else:
            differences = check_manifest(recorded, shards)
    tokenizer = options.tokenizer
    if tokenizer is not None and recorded:
        if not options.force:
            _check_tokenizer(path, recorded, tokenizer)
        size = recorded.get("vocab_size")
        # Null is no contradiction: the tokenizer fills it in. Other forms of it may have other sizes, filled
        # up to the model's.
        is_another_form = recorded.get("tokenizer_sha256") not in (None, tokenizer.sha256)
        if not is_another_form and size not in (None, tokenizer.vocab_size):
            differences.append(f"vocab_size is {size!r}, but {tokenizer.vocab_size!r} for this tokenizer")
    if differences and not options.force:
        raise RefusedError(
            f"{path / MANIFEST}: does not match the shards: {'; '.join(differences)}; "
            "pass --force to replace it (the old one is kept as manifest.json.bak)",
            path=path / MANIFEST,
        )
    return recorded


def _check_tokenizer(path: Path, recorded: dict[str, Any], tokenizer: LoadedTokenizer) -> None:
    """Check that the tokenizer is the one that the manifest records.

    Raises:
        RefusedError: it is another one. The manifest is right, so the message does not offer to replace it.
    """
    shards, given = facts_of_shards(path, recorded), facts_of_tokenizer(tokenizer)
    check_same_tokenizer(shards, given)
    if shards.is_known or shards.sha256 in (None, given.sha256):
        return
    raise RefusedError(
        f"{given.label}: not the tokenizer that {path / MANIFEST} records: tokenizer_sha256 is "
        f"{shards.sha256!r}, but {given.sha256!r} for this one; "
        f"pass {recorded.get('tokenizer_dir') or 'the one that encoded the shards'}",
        path=given.label,
    )


def _keep_scan(report: RepairReport) -> RepairReport:
    """Add a scan with hashes to a manifest that agrees with the files."""
    from apr.data.scan import Scan

    scan = report.scan
    # A scan without hashes does not spare a run the reading of the shards: it needs them for its fingerprint.
    if scan is None or scan.corpus_sha256 is None or scan.kept == Scan.from_manifest(report.manifest):
        return report
    report = replace(report, manifest={**report.manifest, **scan.manifest_keys()}, outcome="scan kept")
    write_manifest(report.path, report.manifest)
    return report


def _contradicted_keys(
    manifest: dict[str, Any], scan: FullScan, tokenizer: LoadedTokenizer | None
) -> dict[str, str]:
    """Return the keys that the ids contradict, each with a line that says how."""
    contradicted = {}
    recorded, sha256 = manifest.get("corpus_sha256"), scan.corpus_sha256
    if recorded is not None and sha256 is not None and recorded != sha256:
        contradicted["corpus_sha256"] = (
            f"corpus_sha256 is {recorded!r}, but the hashes of the shards give {sha256!r}"
        )

    eos_count, expected_eos = manifest.get("eos_token_count"), _expected_eos_count(manifest)
    eos_id = manifest.get("eos_token_id")
    if eos_id is None and tokenizer is not None:
        eos_id = tokenizer.eos_id
    if eos_count is not None and eos_id is not None:
        actual = scan.count(eos_id)
        # --eos-token may name a token that also occurs within texts; there are then more of them than the
        # encoder wrote. That is fine if the recorded number fits the number of documents.
        if eos_count > actual or (eos_count < actual and eos_count != expected_eos):
            contradicted["eos_token_count"] = (
                f"eos_token_count is {eos_count}, but the shards contain id {eos_id} {actual} times"
            )
            eos_count = actual

    # Only our encoder is known to write exactly the ends of text that its policy says.
    ours = str(manifest.get("producer_version")).startswith("apr ")
    if eos_count is not None and ours and expected_eos is not None and eos_count != expected_eos:
        contradicted["total_documents"] = (
            f"total_documents is {manifest['total_documents']}, which needs {expected_eos} end-of-text "
            f"tokens (eos_policy {manifest['eos_policy']!r}), but there are {eos_count}"
        )
    return contradicted


def _expected_eos_count(manifest: dict[str, Any]) -> int | None:
    """Return the end-of-text tokens that encoding `total_documents` writes; None if a key is missing."""
    documents = manifest.get("total_documents")
    if documents is None:
        return None
    by_policy = {"none": 0, "between": max(0, documents - 1), "after": documents}
    return by_policy.get(str(manifest.get("eos_policy")))


def _content_problems(
    manifest: dict[str, Any],
    recorded: dict[str, Any],
    scan: FullScan,
    tokenizer: LoadedTokenizer | None,
    *,
    force: bool,
) -> list[str]:
    """Return what is wrong with the ids of the shards, one line each."""
    from apr.data.corpus_check import corpus_problems
    from apr.data.recorded import recorded_hashes

    problems = [
        f"{bad.shard}: id {bad.token} at byte {bad.index * ID_SIZE} is not in the vocabulary"
        for bad in scan.out_of_range
    ]
    by_encoder = recorded_hashes({"shards": manifest.get("shards")})
    hashes = recorded_hashes(recorded) | by_encoder
    for shard in scan.shards:
        before = hashes.get(shard.name)
        if before is None or shard.sha256 in (None, before):
            continue
        reason = (
            f"{shard.name}: changed since its hash was recorded "
            f"(SHA-256 {shard.sha256[:12]}…, recorded {before[:12]}…)"
        )
        if shard.name in by_encoder:
            problems.append(reason)
        elif not force:
            # Only an earlier scan has seen it: whoever wrote the shard may have changed it on purpose.
            problems.append(f"{reason}; restore it, or pass --force to accept it")
    if tokenizer is not None:
        eos_id, unk_id = tokenizer.eos_id, tokenizer.unk_id
    else:
        eos_id, unk_id = manifest.get("eos_token_id"), manifest.get("unk_token_id")
    return problems + corpus_problems(scan, eos_id, unk_id)


def _rebuilt(
    true_keys: dict[str, Any], report: RepairReport, options: _Options, *, unfinished: bool
) -> dict[str, Any]:
    """Return a new manifest: what is still true of the old one, and what the files, ids and tokenizer say."""
    scan = report.scan
    new: dict[str, Any] = _tokenizer_keys(options)
    if true_keys.get("tokenizer_sha256") is not None and same_in_manifests(true_keys, new):
        # The encoding may have named another end of text with --eos-token than the tokenizer's own, and the
        # tokenizer may be another form of the one that it used.
        kept_keys = ["eos_token_id"]
        if true_keys["tokenizer_sha256"] != new["tokenizer_sha256"]:
            kept_keys += ["tokenizer_dir", "tokenizer_sha256", "vocab_size"]
        new |= {key: true_keys[key] for key in kept_keys if true_keys.get(key) is not None}
    if scan is not None:
        new |= scan.manifest_keys()
        if scan.corpus_sha256 is not None:
            new["corpus_sha256"] = scan.corpus_sha256
        eos_id = new.get("eos_token_id", true_keys.get("eos_token_id"))
        if eos_id is not None and true_keys.get("eos_token_count") is None:
            new["eos_token_count"] = scan.count(eos_id)
    if unfinished or true_keys.get("truncated"):
        new["truncated"] = True
        note = _NOTE_FINISHED
    elif "total_documents" in true_keys:
        note = _NOTE_KEPT
    else:
        note = _NOTE_REBUILT
    return {
        **true_keys,
        "schema": SCHEMA,
        "complete": True,
        "shard_count": len(report.shards),
        "total_tokens": report.total_tokens,
        # Null if no tokenizer says otherwise: the ecosystem's tool always writes both keys, and so does this
        # one.
        "vocab_size": true_keys.get("vocab_size"),
        "tokenizer_dir": true_keys.get("tokenizer_dir"),
        **new,
        "repair": True,
        # RFC 3339 in UTC. It is the only key that differs if a repair is made twice.
        "repaired_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": "repair-manifest",
        "note": note,
    }


def _tokenizer_keys(options: _Options) -> dict[str, Any]:
    """Return the manifest keys that follow from the given tokenizer, without those that it leaves open."""
    tokenizer = options.tokenizer
    if tokenizer is None or options.tokenizer_path is None:
        return {}
    keys = {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_dir": os.fspath(options.tokenizer_path),
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer_identity": tokenizer.identity,
        "eos_token_id": tokenizer.eos_id,
        "unk_token_id": tokenizer.unk_id,
    }
    # Null would erase what the encoder recorded, such as an end of text given with --eos-token.
    return {key: value for key, value in keys.items() if value is not None}

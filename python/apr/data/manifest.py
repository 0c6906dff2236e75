"""`manifest.json` of a shard directory: reading, writing, and where it disagrees with the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import FormatError
from apr.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from apr.data.listing import Shard

MANIFEST = "manifest.json"
SCHEMA = "pretokenize-bin-v1"
# Who may hold the lock on a shard directory, as a refusal names them.
SHARD_WRITERS = "another encoding or repair"
# What is not true of other shards than those that were counted.
_COUNTS = {
    "shard_count",
    "total_tokens",
    "total_documents",
    "skipped_documents",
    "eos_token_count",
    "corpus_sha256",
    "scan",
}
# Of those that may be absent or null, the ones that are numbers of something.
_NUMBERS = ("total_documents", "skipped_documents", "eos_token_count")


def read_manifest(directory: str | PathLike[str]) -> dict[str, Any]:
    """The manifest of a shard directory, unknown keys too.

    Raises:
        FileNotFoundError: there is none; the message says what rebuilds it.
        FormatError: it is no JSON object.
    """
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        reason = f"no manifest: apr repair-manifest {directory} rebuilds it"
        raise FileNotFoundError(error.errno, reason, str(path)) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path}: no JSON ({error}): apr repair-manifest {directory} --force rebuilds it", path=path
        ) from None
    if not isinstance(manifest, dict):
        raise FormatError(
            f"{path}: no JSON object: apr repair-manifest {directory} --force rebuilds it", path=path
        )
    return manifest


def write_manifest(directory: str | PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Write the manifest atomically.

    Raises:
        OSError: it cannot be written; an older one is untouched.
    """
    content = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    write_atomically(Path(directory) / MANIFEST, content.encode())


def check_manifest(manifest: Mapping[str, Any], shards: Sequence[Shard]) -> list[str]:
    """Where a manifest disagrees with the shards beside it, one line a field; empty if nowhere.

    `schema`, `shard_count` and `total_tokens` must be there; `shards` is compared if its rows are ours.
    """
    expected = {
        "schema": SCHEMA,
        "shard_count": len(shards),
        "total_tokens": sum(shard.tokens for shard in shards),
    }
    found = [
        f"{key} is {_shown(manifest, key)}, {'it must be' if key == 'schema' else 'the files say'} {value!r}"
        for key, value in expected.items()
        if type(manifest.get(key)) is not type(value) or manifest[key] != value
    ]
    # What may be absent or null, but is used where it is there.
    found += [
        f"{key} is {manifest[key]!r}, no number of 32 bits"
        for key in ("vocab_size", "eos_token_id", "unk_token_id")
        if not _is_id(manifest.get(key, 0))
    ]
    if not isinstance(manifest.get("complete"), bool | None):
        found.append(f"complete is {manifest['complete']!r}, neither true nor false")
    found += _wrong_counts(manifest).values()
    rows = shard_rows(manifest)
    if rows:
        found += _row_problems(rows, shards)
    return found


def _wrong_counts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Keys that say how much there is of something and cannot be true, whatever the shards hold."""
    found = {
        key: f"{key} is {manifest[key]!r}, no number of anything"
        for key in _NUMBERS
        if manifest.get(key) is not None and not is_count(manifest[key])
    }
    if not isinstance(manifest.get("corpus_sha256"), str | None):
        found["corpus_sha256"] = f"corpus_sha256 is {manifest['corpus_sha256']!r}, no text"
    documents = [row.get("documents") for row in shard_rows(manifest)]
    total = manifest.get("total_documents")
    if documents and total is not None and all(map(is_count, documents)):
        counted = sum(row["documents"] for row in shard_rows(manifest))
        # Without ends of text, empty documents at the end are in no shard.
        open_end = manifest.get("eos_policy") not in ("between", "after")
        if total != counted and not (open_end and is_count(total) and total > counted):
            found["total_documents"] = f"total_documents is {total!r}, its shards have {counted}"
    return found


def is_count(value: object) -> bool:
    """Whether it is a whole number, not below 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def agreeing(manifest: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """What of a manifest can be kept for these shards: all but what `check_manifest` names and what follows.

    Rows of shards that are as they were stay with their hashes, others say no more than how many tokens there
    are. Where tokens came, went or were never counted, so did documents.
    """
    if not manifest or not check_manifest(manifest, shards):
        return dict(manifest)
    kept = {
        key: value
        for key, value in manifest.items()
        if key not in ("vocab_size", "eos_token_id", "unk_token_id") or _is_id(value)
    }
    rows = {row["name"]: row for row in shard_rows(manifest) if isinstance(row.get("sha256"), str | None)}
    if rows:
        fresh = [{"name": shard.name, "tokens": shard.tokens} for shard in shards]
        recorded = [rows.get(row["name"], row) for row in fresh]
        kept["shards"] = [
            old if old["tokens"] == row["tokens"] else row for old, row in zip(recorded, fresh, strict=True)
        ]
    total = sum(shard.tokens for shard in shards)
    counted = (manifest.get("shard_count"), manifest.get("total_tokens")) == (len(shards), total)
    if not counted or kept.get("shards") != manifest.get("shards"):
        kept = {key: value for key, value in kept.items() if key not in _COUNTS}
    wrong = _wrong_counts(kept)
    return {key: value for key, value in kept.items() if key not in wrong}


def shard_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `shards`, {name, tokens, …}; empty where another producer keeps something else there."""
    rows = manifest.get("shards")
    ours = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("name"), str) and "tokens" in row for row in rows
    )
    return rows if ours and rows else []


def _is_id(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return value is None
    return 0 <= value < 2**32


def _row_problems(rows: Sequence[Mapping[str, Any]], shards: Sequence[Shard]) -> list[str]:
    if not all(isinstance(row.get("sha256"), str | None) for row in rows):
        return ["shards has a sha256 that is no text"]
    recorded = {row["name"]: row["tokens"] for row in rows}
    actual = {shard.name: shard.tokens for shard in shards}
    return [
        f"{name}: {recorded.get(name, 'no')} tokens recorded, {actual.get(name, 'no')} in the file"
        for name in sorted(recorded.keys() | actual.keys())
        if recorded.get(name) != actual.get(name)
    ]


def _shown(manifest: Mapping[str, Any], key: str) -> str:
    return repr(manifest[key]) if key in manifest else "missing"

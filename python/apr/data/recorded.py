"""The hashes that a manifest records, and shards that no longer have them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from apr.data.manifest import shard_rows
from apr.data.scan import Scan, corpus_sha256
from apr.errors import RefusedError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Digits of a hash in an error.
_SHOWN = 12


def recorded_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each shard that its encoder or an earlier scan recorded, in hex, by name."""
    scan = Scan.from_manifest(manifest)
    hashes = {} if scan is None else {shard.name: shard.sha256 for shard in scan.shards}
    # What the encoder recorded wins: a scan may be of a shard that was damaged before it.
    hashes |= {row["name"]: row.get("sha256") for row in shard_rows(manifest) if row.get("sha256")}
    return {name: sha256 for name, sha256 in hashes.items() if sha256 is not None}


def check_hashes(directory: Path, manifest: Mapping[str, Any], hashes: Mapping[str, str | None]) -> None:
    """Compare hashes of shards with those that the manifest records.

    Args:
        directory: the shard directory.
        manifest: its manifest.
        hashes: SHA-256 of shards in hex, by name, in stream order. If the manifest counts as many and does
            not have those of their encoder, that of all together is compared.

    Raises:
        RefusedError: a shard changed; names the first one.
    """
    recorded = recorded_hashes(manifest)
    changed = [name for name, sha256 in hashes.items() if recorded.get(name, sha256) != sha256]
    if changed:
        name = changed[0]
        others = f" (and {counted(len(changed) - 1, 'other shard')})" if len(changed) > 1 else ""
        raise RefusedError(
            f"{directory / name}{others}: changed since its hash was recorded (SHA-256 "
            f"{str(hashes[name])[:_SHOWN]}…, recorded {recorded[name][:_SHOWN]}…); restore the shard, "
            "or encode the corpus again",
            path=directory / name,
        )
    if recorded_hashes({"shards": manifest.get("shards")}).keys() >= hashes.keys():
        return  # their encoder vouches for each of them
    digests = [sha256 for sha256 in hashes.values() if sha256 is not None]
    of_all = manifest.get("corpus_sha256")
    if of_all is None or len(digests) != manifest.get("shard_count") or of_all == corpus_sha256(digests):
        return
    named = directory / next(iter(hashes)) if len(hashes) == 1 else directory
    raise RefusedError(
        f"{named}: changed since its hash was recorded (corpus_sha256 {corpus_sha256(digests)[:_SHOWN]}…, "
        f"recorded {str(of_all)[:_SHOWN]}…); restore the shards, or encode the corpus again",
        path=named,
    )


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file in hex; None if it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None

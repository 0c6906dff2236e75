"""One pass over the ids of shards, and the summary of it that the manifest keeps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from apr import _core
from apr.data.listing import ID_SIZE
from apr.layout import foreign_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from apr.data.listing import Shard

# How many of the most frequent ids a scan keeps: every id with at least 1 % of all tokens is among them.
_TOP = 100


@dataclass(frozen=True, slots=True)
class ShardScan:
    """Summary of one shard; it is valid while the file has this size and these times."""

    name: str
    size: int
    """Bytes."""
    mtime_ns: int
    ctime_ns: int
    """Time of the last change of the file or its attributes. Unlike `mtime_ns`, no program can set it."""
    max_id: int
    """The highest id."""
    sha256: str | None
    """In hex; None if the scan took no hashes."""
    layout: str | None
    """What the file contains if its bytes are not little-endian 32-bit ids; None if they are."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Summary of all shards of a directory."""

    shards: tuple[ShardScan, ...]
    total_tokens: int
    entropy_bits: float
    """Entropy of the unigram distribution, in bits per token."""
    distinct_ids: int
    """Number of different ids."""
    windows: int
    """Sampled windows of 64 ids, about one per 300 ids; they measure repetition."""
    different_windows: int
    """How many of the windows differ from one another: an estimate with a standard error of 0.8 %."""
    most_frequent: tuple[tuple[int, int], ...]
    """The 100 most frequent ids with their counts, most frequent first."""

    @property
    def max_id(self) -> int:
        """The highest id of all shards."""
        return max(shard.max_id for shard in self.shards)

    @property
    def is_foreign(self) -> bool:
        """Whether a shard contains something else than little-endian 32-bit ids."""
        return any(shard.layout is not None for shard in self.shards)

    @property
    def repeated_share(self) -> float:
        """Share of windows that are copies of another one: 1 - 1/n for n copies of the same text."""
        return 1 - self.different_windows / self.windows if self.windows else 0.0

    @property
    def corpus_sha256(self) -> str | None:
        """SHA-256 over the hex digests of all shards in stream order; None if a shard has none."""
        hashes = [shard.sha256 for shard in self.shards if shard.sha256 is not None]
        return corpus_sha256(hashes) if len(hashes) == len(self.shards) else None

    def share(self, token: int | None) -> float:
        """Return the share of an id in all tokens; 0 for None and for ids outside `most_frequent`."""
        if token is None:
            return 0.0
        return dict(self.most_frequent).get(token, 0) / self.total_tokens

    def manifest_keys(self) -> dict[str, Any]:
        """Return the manifest keys that keep this scan: `scan` and the digest of it."""
        row = self.to_dict()
        return {"scan": row, "scan_sha256": _digest(row)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON keeps them."""
        return asdict(self)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Scan | None:
        """Return the scan that a manifest keeps, valid or outdated; None if its digest is missing or wrong.

        The digest guards against edits by hand and against manifests written before it existed, which did
        not record one. Whoever gets None scans again.
        """
        row = manifest.get("scan")
        try:
            if not isinstance(row, dict) or manifest.get("scan_sha256") != _digest(row):
                return None
            return cls(
                **row
                | {
                    "shards": tuple(ShardScan(**shard) for shard in row["shards"]),
                    "most_frequent": tuple((token, count) for token, count in row["most_frequent"]),
                }
            )
        except (KeyError, TypeError, ValueError, RecursionError):
            # Another version may keep other fields. A manifest that json reads may still be nested too deeply
            # to be written again.
            return None


@dataclass(frozen=True, slots=True)
class IdOutOfRange:
    """An id that is not below the vocabulary's size."""

    shard: str
    index: int
    """Tokens before it in the shard."""
    token: int


@dataclass(frozen=True, slots=True)
class FullScan(Scan):
    """A scan that was just made, with the results that the manifest does not keep."""

    counts: NDArray[np.uint64]
    """Occurrences of each id: uint64 [max_id + 1], without ids from 2^22 on, which no vocabulary has."""
    out_of_range: tuple[IdOutOfRange, ...]
    """The first id of each shard that is not below the vocabulary's size."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON keeps them."""
        return asdict(self.kept)

    @property
    def kept(self) -> Scan:
        """The part that the manifest keeps."""
        return Scan(*(getattr(self, field.name) for field in fields(Scan)))

    def count(self, token: int) -> int:
        """Return how often an id occurs."""
        return int(self.counts[token]) if token < len(self.counts) else 0


def scan_shards(
    shards: Sequence[Shard],
    *,
    vocab_size: int | None = None,
    hashes: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> FullScan:
    """Read every id once, in parallel. The result does not depend on the number of threads.

    Args:
        shards: the shards, in stream order.
        vocab_size: ids that are not below it are out of range.
        hashes: whether to take the SHA-256 of each shard, which takes most of the time.
        on_progress: called with (tokens read, total tokens) from time to time; an exception that it raises
            ends the scan, and so does Ctrl-C.

    Raises:
        OSError: a shard cannot be read; FileNotFoundError if it is gone.
        AprError: the size of a shard changed since it was listed (TruncatedError if it is shorter).
    """
    total = sum(shard.tokens for shard in shards)
    # Before the ids: if a shard changes while it is read, the kept scan is not valid.
    times = [shard.path.stat().st_ctime_ns for shard in shards]
    layouts = [foreign_layout(shard.path) for shard in shards]
    result = _core.scan_shards(
        [(shard.path, shard.tokens) for shard in shards],
        vocab_size,
        hashes,
        None if on_progress is None else lambda read: on_progress(read, total),
    )
    scans, out_of_range = [], []
    for shard, row, ctime_ns, layout in zip(shards, result.shards, times, layouts, strict=True):
        # The scan has checked that the file has this size.
        size = shard.tokens * ID_SIZE
        times_ns = row.modified_ns, ctime_ns
        scans.append(ShardScan(shard.name, size, *times_ns, row.max_id or 0, row.sha256, layout))
        if row.first_out_of_range is not None:
            out_of_range.append(IdOutOfRange(shard.name, *row.first_out_of_range))
    # Ids beyond any vocabulary have no entry: ids of the other byte order reach 2^32, and a table of them
    # would take 32 GiB.
    counts = np.frombuffer(result.counts, "<u8")
    p = counts[counts > 0] / max(1, counts.sum())
    return FullScan(
        shards=tuple(scans),
        total_tokens=total,
        # The entropy of a single id is -0.0, which JSON would keep; adding 0.0 removes the sign.
        entropy_bits=float(-(p * np.log2(p)).sum()) + 0.0,
        distinct_ids=int(np.count_nonzero(counts)),
        windows=result.windows,
        different_windows=result.different_windows,
        most_frequent=_most_frequent(counts),
        counts=counts,
        out_of_range=tuple(out_of_range),
    )


def corpus_sha256(digests: Iterable[str]) -> str:
    """Return the SHA-256 over the hex digests of shards in stream order, in hex."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def common_shards(a: Iterable[ShardScan], b: Iterable[ShardScan]) -> list[tuple[str, str]]:
    """Return the names of shards of two directories that have the same bytes, in pairs."""
    names = {shard.sha256: shard.name for shard in a if shard.sha256 is not None}
    return [(names[shard.sha256], shard.name) for shard in b if shard.sha256 in names]


def _digest(row: dict[str, Any]) -> str:
    # Canonical form: sorted keys, no white space, so that reformatting the manifest changes nothing.
    return hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _most_frequent(counts: NDArray[np.uint64]) -> tuple[tuple[int, int], ...]:
    """Return the `_TOP` most frequent ids with their counts; of equal counts, the higher id first."""
    # Sorting all counts would take as long as the scan of millions of ids, so only candidates are sorted.
    threshold = np.partition(counts, -_TOP)[-_TOP] if len(counts) > _TOP else 0
    ids = np.flatnonzero(counts >= max(1, threshold))
    order = ids[np.argsort(counts[ids], kind="stable")[::-1][:_TOP]]
    return tuple((int(token), int(counts[token])) for token in order)

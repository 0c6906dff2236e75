"""One pass over the ids of shards, and what the manifest keeps of it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable  # noqa: TC003 (a table of them is annotated)
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from apr import _core
from apr.data.listing import ID_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from apr.data.listing import Shard

# Every id with at least a hundredth of all tokens is among them.
_TOP = 100
# Ids from here on are those of no vocabulary, and are not counted.
MAX_COUNTED = 1 << 22
# What adding up in another order may make of an entropy, in bits.
_ROUNDING = 1e-6
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class ShardScan:
    """What one pass over a shard found; `size` in bytes and `mtime_ns` tell whether it still holds."""

    name: str
    size: int
    mtime_ns: int
    max_id: int
    sha256: str | None
    """In hex; None where it was not asked for."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over all shards found."""

    shards: tuple[ShardScan, ...]
    total_tokens: int
    entropy_bits: float
    """Entropy of the unigram distribution, bits a token."""
    distinct_ids: int
    """How many different ids there are."""
    windows: int
    """Windows of 64 ids that were taken, about one in 300 places, to see what repeats."""
    different_windows: int
    """How many of them differ from one another; an estimate, with a standard error of 0.8 %."""
    most_frequent: tuple[tuple[int, int], ...]
    """The hundred most frequent ids with their counts, most frequent first."""

    @property
    def max_id(self) -> int:
        """The highest id."""
        return max(shard.max_id for shard in self.shards)

    @property
    def repeated_share(self) -> float:
        """Share of windows that are copies of another one; n copies of everything have 1 - 1/n."""
        return 1 - self.different_windows / self.windows if self.windows else 0.0

    @property
    def corpus_sha256(self) -> str | None:
        """SHA-256 over the shards' hex digests in stream order; None where a shard was not hashed."""
        hashes = [shard.sha256 for shard in self.shards if shard.sha256 is not None]
        return corpus_sha256(hashes) if len(hashes) == len(self.shards) else None

    def share(self, token: int | None) -> float:
        """Share of an id in all tokens; 0 for an id that is not among the hundred most frequent."""
        return dict(self.most_frequent).get(token, 0) / self.total_tokens if token is not None else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: object) -> Scan:
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else, or its numbers are not those of one corpus.
        """
        row = _typed(cls, kept)
        found = cls(
            **row
            | {
                "shards": tuple(ShardScan(**_typed(ShardScan, shard)) for shard in row["shards"]),
                "most_frequent": tuple(_pair(pair) for pair in row["most_frequent"]),
            }
        )
        if not found._adds_up():
            raise ValueError("the numbers are not those of one corpus")
        return found

    def _adds_up(self) -> bool:
        """Whether one corpus can have all of these numbers."""
        counts = [count for _, count in self.most_frequent]
        counted, rest = sum(counts), self.total_tokens - sum(counts)
        ids = {token for token, _ in self.most_frequent}
        order = [(count, token) for token, count in self.most_frequent]
        return (
            0 < 4 * self.total_tokens == sum(shard.size for shard in self.shards)
            and len(ids) == len(counts) == min(_TOP, self.distinct_ids)
            and all(token <= self.max_id for token in ids)
            and order == sorted(order, reverse=True)
            and min(counts, default=0) > 0 <= rest
            and self.distinct_ids - len(ids) <= rest
            and self.different_windows <= self.windows <= self.total_tokens
            # Ids that no vocabulary has are in none of the counts.
            and (self.max_id >= MAX_COUNTED or self._entropy_fits(counts, counted))
        )

    def _entropy_fits(self, counts: Sequence[int], counted: int) -> bool:
        """Whether the entropy is one that these counts and so many other ids leave open."""
        total, rest, others = self.total_tokens, self.total_tokens - counted, self.distinct_ids - len(counts)
        if (rest == 0) != (others == 0) or rest > others * min(counts):
            return False
        known = sum(count / total * math.log2(total / count) for count in counts)
        least = known + rest / total * math.log2(total / min(counts))
        most = known + (rest / total * math.log2(total * others / rest) if rest else 0.0)
        return least - _ROUNDING <= self.entropy_bits <= most + _ROUNDING


def _typed(of: type, kept: object) -> dict[str, Any]:
    """The fields of a dataclass as JSON keeps them, each of its kind and no number below 0."""
    if not isinstance(kept, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (all of this is one error)
    row = {field.name: kept.get(field.name) for field in fields(of)}
    if kept.keys() != row.keys() or not all(_KINDS[field.name](row[field.name]) for field in fields(of)):
        raise ValueError(f"no {of.__name__}")
    return row


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_count, value)):
        raise ValueError("no id with its count")
    return value[0], value[1]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _is_time(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


_KINDS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "size": lambda value: _is_count(value) and value > 0 and value % ID_SIZE == 0,
    "mtime_ns": _is_time,
    "max_id": lambda value: _is_count(value) and value < 1 << 32,
    "sha256": lambda value: value is None or (isinstance(value, str) and bool(_SHA256.match(value))),
    "shards": lambda value: isinstance(value, list | tuple) and len(value) > 0,
    "total_tokens": _is_count,
    "entropy_bits": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "distinct_ids": _is_count,
    "windows": _is_count,
    "different_windows": _is_count,
    "most_frequent": lambda value: isinstance(value, list | tuple),
}


def kept_scan(manifest: Mapping[str, Any]) -> Scan | None:
    """The scan that a manifest keeps, whether or not it still holds; None without one that can be read."""
    try:
        return Scan.from_dict(manifest.get("scan"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Beyond:
    """An id at or above the vocabulary's size; `index` counts tokens from the start of the shard."""

    shard: str
    index: int
    token: int


@dataclass(frozen=True, slots=True)
class FullScan(Scan):
    """A scan that has just been made, with what the manifest does not keep."""

    counts: NDArray[np.uint64]
    """How often each id occurs, [max_id + 1]; ids that no vocabulary has are left out."""
    beyond: tuple[Beyond, ...]
    """The first id of each shard that is out of range."""

    def to_dict(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return asdict(self.kept)

    @property
    def kept(self) -> Scan:
        """What the manifest keeps."""
        return Scan(*(getattr(self, field.name) for field in fields(Scan)))


def scan_shards(
    shards: Sequence[Shard],
    *,
    vocab_size: int | None = None,
    hashes: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> FullScan:
    """Read every id once, in parallel. What is found does not depend on how many threads there are.

    Args:
        shards: what to read, in stream order.
        vocab_size: ids from here on are out of range.
        hashes: whether each shard's SHA-256 is wanted; it takes most of the time.
        on_progress: called with (tokens read, tokens in all) from time to time; what it raises ends the
            scan, as Ctrl-C does.

    Raises:
        OSError: a shard cannot be read; FileNotFoundError where it is gone.
        AprError: a shard is shorter (TruncatedError) or longer than it was listed with; names it.
    """
    total = sum(shard.tokens for shard in shards)
    rows, raw, windows, different = _core.scan_shards(
        [(shard.path, shard.tokens) for shard in shards],
        vocab_size,
        hashes,
        None if on_progress is None else lambda read: on_progress(read, total),
    )
    scans, beyond = [], []
    for shard, (modified, max_id, out_of_range, sha256) in zip(shards, rows, strict=True):
        scans.append(ShardScan(shard.name, shard.tokens * ID_SIZE, modified, max_id or 0, sha256))
        if out_of_range is not None:
            beyond.append(Beyond(shard.name, *out_of_range))
    counts = np.frombuffer(raw, "<u8")
    return FullScan(
        shards=tuple(scans),
        total_tokens=total,
        entropy_bits=_entropy_bits(counts),
        distinct_ids=int(np.count_nonzero(counts)),
        windows=windows,
        different_windows=different,
        most_frequent=_most_frequent(counts),
        counts=counts,
        beyond=tuple(beyond),
    )


def _most_frequent(counts: NDArray[np.uint64]) -> tuple[tuple[int, int], ...]:
    """The `_TOP` most frequent ids; of equally frequent ones the higher first."""
    # All counts sorted would take as long as the scan of millions of ids.
    least = np.partition(counts, -_TOP)[-_TOP] if len(counts) > _TOP else 0
    ids = np.flatnonzero(counts >= max(1, least))
    order = ids[np.argsort(counts[ids], kind="stable")[::-1][:_TOP]]
    return tuple((int(token), int(counts[token])) for token in order)


def _entropy_bits(counts: NDArray[np.uint64]) -> float:
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum()) + 0.0


def corpus_sha256(shards: Iterable[str]) -> str:
    """SHA-256 over the shards' own, in hex and in stream order."""
    return hashlib.sha256("".join(shards).encode()).hexdigest()


def common_shards(a: Iterable[ShardScan], b: Iterable[ShardScan]) -> list[tuple[str, str]]:
    """Pairs of shards of two directories that are the same bytes."""
    names = {shard.sha256: shard.name for shard in a if shard.sha256 is not None}
    return [(names[shard.sha256], shard.name) for shard in b if shard.sha256 in names]

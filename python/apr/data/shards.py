"""A shard directory as one stream of token ids: listing, reading, scanning."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr._core import TokenStream, scan_shards
from apr.data.manifest import check_manifest, read_manifest, write_manifest
from apr.data.missing_manifest import MANIFEST
from apr.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

SHARD_NAME = re.compile(r"^shard-([0-9]{4,6})\.bin$")
TOKEN = np.dtype("<u4")
# Shards a call into the core: keeps every core busy, and lets progress and Ctrl-C through in between.
_SCAN_BATCH = 4 * (os.cpu_count() or 1)
# Every id with at least a hundredth of all tokens is among them.
_TOP = 100
# Keys of a manifest that two encodings of one corpus may differ in.
_VOLATILE = {"scan", "elapsed_seconds", "num_workers", "repaired_at"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard file."""

    name: str
    path: Path
    tokens: int


def list_shards(path: str | os.PathLike[str]) -> list[Shard]:
    """The shards of a directory in stream order.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a file whose name, kind or size no shard can have; a gap in the numbering.
    """
    shards = []
    for file, size in shard_files(path):
        if size == 0:
            raise RefusedError(
                f"{file}: an empty shard: apr repair-manifest {path} --drop-empty moves it aside"
            )
        if size % TOKEN.itemsize:
            whole = size - size % TOKEN.itemsize
            raise RefusedError(
                f"{file}: {size} bytes is no whole number of tokens, they end at byte {whole}: "
                f"apr repair-manifest {path} --truncate-torn cuts it there"
            )
        shards.append(Shard(file.name, file, size // TOKEN.itemsize))
    return shards


def shard_files(path: str | os.PathLike[str]) -> list[tuple[Path, int]]:
    """The shard files of a directory in stream order, each with its size in bytes, whatever that is.

    Raises:
        FileNotFoundError, NotADirectoryError: no such directory.
        RefusedError: no shards; a name or kind that no shard can have; mixed widths; a gap in the numbering.
    """
    found = []
    for entry in sorted(Path(path).iterdir()):
        if entry.suffix != ".bin":
            continue
        if not SHARD_NAME.match(entry.name):
            raise RefusedError(f"{entry}: no shard's name (shard-NNNNN.bin): move it out of the directory")
        status = entry.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{entry}: not a regular file: put the shard itself there")
        found.append((entry, status.st_size))
    if not found:
        raise RefusedError(f"{path}: no shards (shard-NNNNN.bin) in this directory")
    width = len(found[0][0].name)
    for i, (file, _) in enumerate(found):
        if len(file.name) != width:
            raise RefusedError(
                f"{file}: its number has another width than {found[0][0].name}'s: rename them alike"
            )
        number = int(file.stem.removeprefix("shard-"))
        if number != i:
            raise RefusedError(f"{file}: numbering has a gap, number {i} is missing")
    return found


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
    most_frequent: tuple[tuple[int, int], ...]
    """The hundred most frequent ids with their counts, most frequent first."""

    @property
    def max_id(self) -> int:
        """The highest id."""
        return max(shard.max_id for shard in self.shards)

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
    def from_dict(cls, kept: dict[str, Any]) -> Scan:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(
            tuple(ShardScan(**shard) for shard in kept["shards"]),
            int(kept["total_tokens"]),
            float(kept["entropy_bits"]),
            tuple((int(token), int(count)) for token, count in kept["most_frequent"]),
        )


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
        return asdict(Scan(self.shards, self.total_tokens, self.entropy_bits, self.most_frequent))


def scan(
    shards: Sequence[Shard],
    *,
    vocab_size: int | None = None,
    hashes: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> FullScan:
    """Read every id once, in parallel.

    Args:
        shards: what to read, in stream order.
        vocab_size: ids from here on are out of range.
        hashes: whether each shard's SHA-256 is wanted; it takes most of the time.
        on_progress: called with (tokens read, tokens in all) from time to time.

    Raises:
        OSError: a shard cannot be read.
    """
    total, read = sum(shard.tokens for shard in shards), 0
    counts = np.zeros(0, np.uint64)
    scans: list[ShardScan] = []
    beyond: list[Beyond] = []
    for start in range(0, len(shards), _SCAN_BATCH):
        batch = shards[start : start + _SCAN_BATCH]
        # Asked before reading: a shard that changes meanwhile does not match its scan.
        status = [shard.path.stat() for shard in batch]
        for shard, at, row in zip(
            batch, status, scan_shards([s.path for s in batch], vocab_size, hashes), strict=True
        ):
            _, max_id, out_of_range, sha256, raw = row
            scans.append(ShardScan(shard.name, at.st_size, at.st_mtime_ns, max_id or 0, sha256))
            if out_of_range is not None:
                beyond.append(Beyond(shard.name, *out_of_range))
            counts = _add(counts, np.frombuffer(raw, "<u8"))
            read += shard.tokens
        if on_progress is not None:
            on_progress(read, total)
    order = np.argsort(counts, kind="stable")[::-1][:_TOP]
    top = tuple((int(i), int(counts[i])) for i in order if counts[i])
    return FullScan(tuple(scans), total, _entropy_bits(counts), top, counts, tuple(beyond))


def _add(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    longer, shorter = (a.copy(), b) if len(a) >= len(b) else (b.astype(np.uint64), a)
    longer[: len(shorter)] += shorter
    return longer


def _entropy_bits(counts: NDArray[np.uint64]) -> float:
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum()) + 0.0


class ShardDir:
    """A shard directory with its manifest: one stream of `total_tokens` ids.

    Raises:
        FileNotFoundError: no such directory, or no manifest.
        RefusedError: shards or manifest are not what they should be; the message says what repairs them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.shards = tuple(list_shards(self.path))
        self.manifest = read_manifest(self.path)
        differences = check_manifest(self.manifest, self.shards)
        if differences:
            raise RefusedError(
                f"{self.path / MANIFEST}: {'; '.join(differences)}: "
                f"apr repair-manifest {self.path} --force rebuilds it"
            )
        if self.manifest.get("complete") is False:
            raise RefusedError(
                f"{self.path}: encoding did not finish: finish it with --resume, "
                f"or take what is there with apr repair-manifest {self.path}"
            )
        self._starts = [0, *accumulate(shard.tokens for shard in self.shards)]

    @property
    def total_tokens(self) -> int:
        """Number of ids in the stream."""
        return self._starts[-1]

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary's size as the manifest gives it."""
        value = self.manifest.get("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest without what two encodings of one corpus may differ in."""
        kept = {key: value for key, value in self.manifest.items() if key not in _VOLATILE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def starts(self) -> list[int]:
        """The first id's place of each shard, and the end of the stream."""
        return list(self._starts)

    def read(self, start: int, n: int) -> NDArray[np.uint32]:
        """The ids `start` … `start + n` (exclusive) of the stream, as a new uint32 array.

        Raises:
            IndexError: they are not all in the stream.
        """
        if start < 0 or n < 0 or start + n > self.total_tokens:
            raise IndexError(f"{self.path}: ids {start} to {start + n} of a stream of {self.total_tokens}")
        out = np.empty(n, TOKEN)
        self.read_into(start, out)
        return out.astype(np.uint32, copy=False)

    def read_into(self, start: int, out: NDArray[np.uint32]) -> None:
        """Fill `out` [n], C-contiguous, with the ids from `start` on; the caller has checked the range.

        Raises:
            TruncatedError: a shard is shorter than it was; names it.
            OSError: a shard cannot be read; FileNotFoundError where it is gone.
        """
        self._stream.read(start, out.data)

    def gather(self, starts: Sequence[int], out: NDArray[np.uint32]) -> None:
        """Fill the rows of `out` [len(starts), n], C-contiguous, with ids from each start on: `read_into`."""
        self._stream.gather(starts, out.reshape(-1).data)

    def scan(self, on_progress: Callable[[int, int], None] | None = None) -> Scan:
        """Every id, read once: the scan that the manifest keeps where all sizes and times still agree.

        Else a new one, kept in the manifest where that can be written.

        Raises:
            OSError: a shard cannot be read.
        """
        kept = self._kept_scan()
        if kept is not None:
            return kept
        made = scan(self.shards, on_progress=on_progress)
        self.manifest = {**self.manifest, "scan": made.to_dict()}
        # A directory that others own is read all the same; it is scanned anew next time.
        if os.access(self.path, os.W_OK):
            write_manifest(self.path, self.manifest)
        return made

    def _kept_scan(self) -> Scan | None:
        try:
            kept = Scan.from_dict(self.manifest["scan"])
        except (KeyError, TypeError, ValueError):
            return None
        status = [(shard.name, shard.path.stat()) for shard in self.shards]
        now = [(name, at.st_size, at.st_mtime_ns) for name, at in status]
        same = now == [(s.name, s.size, s.mtime_ns) for s in kept.shards]
        return kept if same and kept.corpus_sha256 is not None else None

    @cached_property
    def _stream(self) -> TokenStream:
        return TokenStream([(shard.path, shard.tokens) for shard in self.shards])


def corpus_sha256(shards: Iterable[str]) -> str:
    """SHA-256 over the shards' own, in hex and in stream order."""
    return hashlib.sha256("".join(shards).encode()).hexdigest()


def common_shards(a: Iterable[ShardScan], b: Iterable[ShardScan]) -> list[tuple[str, str]]:
    """Pairs of shards of two directories that are the same bytes."""
    names = {shard.sha256: shard.name for shard in a if shard.sha256 is not None}
    return [(names[shard.sha256], shard.name) for shard in b if shard.sha256 in names]

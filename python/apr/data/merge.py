"""Join the parts of an encoding: the same shards and the same manifest as if one run had written them.

A shard ends after the document that fills it, wherever the parts were cut. So each part keeps the lengths of
its documents, from which the shards of the whole follow, and the ids are copied to their new places.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from apr.data.corpus_part import Part, parse_part
from apr.data.identity import same_in_manifests
from apr.data.listing import ID_SIZE, list_shards
from apr.data.manifest import MANIFEST, SCHEMA, check_manifest, read_manifest, shard_rows, write_manifest
from apr.data.output_dir import clear_output, lock_output, manifest_to_resume
from apr.data.recorded import file_sha256
from apr.data.scan import corpus_sha256
from apr.data.shard_writer import lengths_path
from apr.errors import RefusedError, UsageError
from apr.files import replacing
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.data.manifest import Manifest, ShardRow

# Keys that all parts must share.
_SAME = (
    *("tokenizer_sha256", "vocab_size", "eos_policy", "eos_token_id", "content_field", "normalization"),
    *("corpus_roots", "input_files", "input_bytes", "shard_tokens", "producer_version"),
)
_COPY_BYTES = 1 << 20
# Between two manifests of an unfinished merge. The manifest of 25,000 shards is 5 MB: written after each of
# them, it would take longer than the shards.
_MANIFEST_SECONDS = 1.0
_MAX_NAMED = 5


@dataclass(frozen=True)
class MergeReport:
    """The result of joining parts."""

    manifest: Manifest
    nbytes: int
    """Bytes of shards that this run wrote; 0 if nothing was left to do."""
    seconds: float
    complete_before: bool = False
    """Whether nothing was left to do."""


def merge_parts(
    parts: Sequence[Path],
    output: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_progress: Callable[[int, int], None] = lambda _written, _total: None,
) -> MergeReport:
    """Join all parts of an encoding into a directory of shards.

    Args:
        parts: the directories that `apr tokenize encode --part I/N` wrote, in any order.
        output: the directory for the shards.
        resume: continue a merge that was interrupted.
        force: replace shards that are already in the output directory.
        on_progress: called with the bytes of finished shards and of all shards.

    Raises:
        UsageError: `resume` and `force` together; the output is one of the parts.
        RefusedError: a part is missing, given twice, incomplete or damaged; parts of different encodings; the
            output already contains shards.
        OSError: reading or writing failed; `resume` continues.
    """
    started = time.monotonic()
    if resume and force:
        raise UsageError("--resume cannot be used with --force; resume, or start over")
    if output.resolve() in [path.resolve() for path in parts]:
        raise UsageError(f"{output}: --output is one of the parts; use another directory", path=output)
    sources = _check_parts(parts)
    whole = _whole_manifest(sources)
    with lock_output(output):
        earlier = manifest_to_resume(output, resume=resume, force=force)
        rows = [] if earlier is None else _check_earlier(output, earlier, whole)
        if earlier is not None and earlier.get("complete") is not False:
            seconds = time.monotonic() - started
            return MergeReport(cast("Manifest", earlier), 0, seconds, complete_before=True)
        # Before anything is removed: parts that were damaged on their way from other machines are named here.
        _check_hashes(sources)
        clear_output(output, keep=earlier is not None)
        merge = _Merge(output, whole, rows)
        merge.run(_plan(sources), sources[0].manifest["part_range"]["name_digits"], on_progress)
        whole["elapsed_seconds"] = round(whole["elapsed_seconds"] + time.monotonic() - started, 3)
        manifest = merge.save(complete=True)
    return MergeReport(manifest, merge.written, time.monotonic() - started)


@dataclass(frozen=True)
class _Source:
    """A part that was checked."""

    path: Path
    part: Part
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _Shard:
    """A shard of the whole: ids of parts' shards, each with the position of the first and their number."""

    pieces: list[tuple[Path, int, int]]
    documents: int

    @property
    def tokens(self) -> int:
        """Number of ids."""
        return sum(count for _, _, count in self.pieces)


@dataclass
class _Merge:
    """The shards that are written, and those that threads are writing."""

    output: Path
    whole: Manifest
    rows: list[ShardRow]
    written: int = 0
    _pending: deque[tuple[str, _Shard, Future[str]]] = field(default_factory=deque)

    def run(self, shards: Iterator[_Shard], digits: int, on_progress: Callable[[int, int], None]) -> None:
        """Write the shards that are not written yet, several at a time."""
        threads = len(os.sched_getaffinity(0))
        done = len(self.rows)
        finished = ID_SIZE * sum(row["tokens"] for row in self.rows)
        saved = time.monotonic()
        self.save()
        with ThreadPoolExecutor(threads, "merge") as pool:
            try:
                for number, shard in enumerate(islice(shards, done, None), done):
                    name = f"shard-{number:0{digits}}.bin"
                    self._pending.append((name, shard, pool.submit(_write, self.output / name, shard)))
                    # Enough that no thread waits, and not the shards of a terabyte at once.
                    while len(self._pending) > 2 * threads:
                        self._finish_first()
                        on_progress(finished + self.written, ID_SIZE * self.whole["total_tokens"])
                        if time.monotonic() - saved > _MANIFEST_SECONDS:
                            self.save()
                            saved = time.monotonic()
                while self._pending:
                    self._finish_first()
            except BaseException:
                for _, _, future in self._pending:
                    future.cancel()
                self.save()
                raise

    def _finish_first(self) -> None:
        name, shard, digest = self._pending.popleft()
        row: ShardRow = {
            "name": name,
            "tokens": shard.tokens,
            "documents": shard.documents,
            "sha256": digest.result(),
        }
        self.rows.append(row)
        self.written += ID_SIZE * shard.tokens

    def save(self, *, complete: bool = False) -> Manifest:
        """Write the manifest of the finished shards, and return it."""
        totals = {"total_tokens": sum(row["tokens"] for row in self.rows)}
        manifest = self.whole.copy()
        if not complete:
            totals["total_documents"] = sum(row.get("documents", 0) for row in self.rows)
            manifest["progress"] = {"place": [], "options": {"merge": _identity(self.whole)}}
        manifest.update(cast("Manifest", totals))
        manifest["complete"] = complete
        manifest["shard_count"] = len(self.rows)
        manifest["corpus_sha256"] = corpus_sha256(row["sha256"] or "" for row in self.rows)
        # Last but for `progress`, where an encoding has them.
        del manifest["shards"]
        progress = manifest.pop("progress", None)
        manifest["shards"] = list(self.rows)
        if progress is not None:
            manifest["progress"] = progress
        write_manifest(self.output, manifest)
        return manifest


def _check_parts(parts: Sequence[Path]) -> list[_Source]:
    """Return the parts in order.

    Raises:
        RefusedError: the parts are not all parts of one encoding; names the one, or the key, that is wrong.
    """
    sources = sorted((_check_part(path) for path in parts), key=lambda source: source.part)
    first = sources[0]
    for source in sources[1:]:
        if source.part.of != first.part.of:
            raise RefusedError(
                f"{source.path}: part {source.part}, but {first.path} is part {first.part}; all parts must "
                "have the same N",
                path=source.path,
            )
        if not same_in_manifests(source.manifest, first.manifest):
            raise RefusedError(
                f"{source.path}: encoded with {source.manifest.get('tokenizer_dir')}, but {first.path} with "
                f"another tokenizer, {first.manifest.get('tokenizer_dir')}; encode all parts with one",
                path=source.path,
            )
        different = [
            key
            for key in _SAME
            if key != "tokenizer_sha256" and source.manifest.get(key) != first.manifest.get(key)
        ]
        ranges = [one.manifest["part_range"] for one in (first, source)]
        different += [
            key for key in ("corpus_files", "name_digits") if ranges[0].get(key) != ranges[1].get(key)
        ]
        if different:
            what = different[0]
            if what == "corpus_files":
                what = "corpus_files (names, sizes and times of the files)"
            raise RefusedError(
                f"{source.path}: {what} differs from that of {first.path}; encode all parts from the "
                "same corpus with the same tokenizer and options",
                path=source.path,
            )
    numbers = [source.part.number for source in sources]
    for before, source in pairwise(sources):
        if before.part == source.part:
            raise RefusedError(
                f"{source.path}: part {source.part} is also {before.path}; pass each part once",
                path=source.path,
            )
    if missing := sorted(set(range(1, first.part.of + 1)) - set(numbers)):
        named = ", ".join(f"{number}/{first.part.of}" for number in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise RefusedError(
            f"missing parts: {named}{more}; encode them with apr tokenize encode --part {missing[0]}/"
            f"{first.part.of} and so on"
        )
    for before, source in pairwise(sources):
        if before.manifest["part_range"].get("stop") != source.manifest["part_range"].get("start"):
            raise RefusedError(
                f"{source.path}: does not begin where {before.path} stops; encode both again with --force",
                path=source.path,
            )
    return sources


def _check_part(path: Path) -> _Source:
    # Before the manifest in it, whose absence would be named instead.
    with os.scandir(path) as entries:
        has_manifest = any(entry.name == MANIFEST for entry in entries)
    manifest = read_manifest(path) if has_manifest else {}
    part, part_range = manifest.get("part"), manifest.get("part_range")
    if not isinstance(part, str) or not isinstance(part_range, dict):
        what = "a whole encoding" if manifest.get("schema") == SCHEMA else recognized(path)
        raise RefusedError(
            f"{path}: not a part of an encoding{f', but {what}' if what else ''}; pass directories that "
            "apr tokenize encode --part I/N wrote",
            path=path,
        )
    if manifest.get("complete") is not True:
        raise RefusedError(
            f"{path}: part {part} is incomplete; run its command again with --resume", path=path
        )
    # A part of few documents may have no shard.
    shards = list_shards(path) if manifest.get("shards") != [] or manifest.get("total_tokens") else []
    if differences := check_manifest(manifest, shards):
        raise RefusedError(
            f"{path / MANIFEST}: does not match the shards: {'; '.join(differences)}; copy or "
            "encode the part again",
            path=path / MANIFEST,
        )
    return _Source(path, parse_part(part), manifest)


def _check_hashes(sources: Sequence[_Source]) -> None:
    """Check every byte of the parts.

    Raises:
        RefusedError: a shard changed since it was encoded; names it.
    """
    rows = [(source.path / row["name"], row) for source in sources for row in shard_rows(source.manifest)]
    # hashlib releases the interpreter's lock, so threads hash several shards at a time.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (path, row), digest in zip(rows, pool.map(file_sha256, [path for path, _ in rows]), strict=True):
            if digest != row.get("sha256"):
                raise RefusedError(
                    f"{path}: changed since it was encoded; copy or encode the part again", path=path
                )


def _check_earlier(output: Path, earlier: dict[str, Any], whole: Manifest) -> list[ShardRow]:
    """Return the rows of the shards that an interrupted merge of the same parts wrote.

    Raises:
        RefusedError: something else wrote the directory, or a shard of it changed.
    """
    complete = earlier.get("complete") is not False
    progress = earlier.get("progress")
    options = progress.get("options") if isinstance(progress, dict) else None
    same = earlier if complete else options.get("merge") if isinstance(options, dict) else None
    expected = _identity(whole)
    if (
        not isinstance(same, dict)
        or {key: same.get(key) for key in expected} != expected
        or "part" in earlier
    ):
        raise RefusedError(
            f"{output}: cannot resume: its shards are not those of these parts; use --force to replace them",
            path=output,
        )
    rows = shard_rows(earlier)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for row, digest in zip(
            rows, pool.map(file_sha256, [output / row["name"] for row in rows]), strict=True
        ):
            if digest is None or digest != row.get("sha256"):
                raise RefusedError(
                    f"{output / row['name']}: missing or changed; use --force to start over",
                    path=output / row["name"],
                )
    return rows


def _identity(whole: Manifest) -> dict[str, Any]:
    """What two merges of the same parts share, complete or not."""
    counts = ("total_tokens", "total_documents", "skipped_documents", "input_format")
    return {key: cast("dict[str, Any]", whole).get(key) for key in (*_SAME, *counts)}


def _whole_manifest(sources: Sequence[_Source]) -> Manifest:
    """Return the manifest of the whole encoding, without its shards.

    Raises:
        RefusedError: no part has a document.
    """
    manifests = [source.manifest for source in sources]

    def total(key: str) -> Any:  # noqa: ANN401 (int or float)
        return sum(manifest[key] for manifest in manifests)

    whole = {key: value for key, value in manifests[0].items() if key not in ("part", "part_range")}
    documents = total("total_documents")
    # Each part has an end of text before its first document; the first one of all has none.
    without = 1 if whole["eos_policy"] == "between" and documents else 0
    for key in ("total_tokens", "eos_token_count"):
        whole[key] = total(key) - without
    whole |= {
        "total_documents": documents,
        "skipped_documents": total("skipped_documents"),
        "text_bytes": None if None in [m.get("text_bytes") for m in manifests] else total("text_bytes"),
        "num_workers": total("num_workers"),
        "elapsed_seconds": total("elapsed_seconds"),
    }
    if not whole["total_tokens"]:
        raise RefusedError(f"{', '.join(whole['corpus_roots'])}: no text in any part")
    return cast("Manifest", whole)


def _plan(sources: Sequence[_Source]) -> Iterator[_Shard]:
    """Yield the shards of the whole.

    Raises:
        RefusedError: the lengths of a shard's documents are missing or do not match it.
    """
    full = sources[0].manifest["shard_tokens"]
    drop_first = sources[0].manifest["eos_policy"] == "between"
    pieces: list[tuple[Path, int, int]] = []
    tokens = documents = 0
    for source in sources:
        in_shards = 0
        for row in shard_rows(source.manifest):
            path = source.path / row["name"]
            lengths = _lengths(path, row)
            in_shards += len(lengths)
            at = 0
            if drop_first and len(lengths):
                lengths[0] -= 1
                at, drop_first = 1, False
            ends = np.cumsum(lengths)
            taken = start = 0
            while start < len(lengths):
                # The first document that fills the shard, as in an encoding.
                last = int(np.searchsorted(ends, taken + full - tokens))
                stop = min(last + 1, len(lengths))
                count = int(ends[stop - 1]) - taken
                if count:
                    pieces.append((path, at + taken, count))
                tokens, documents = tokens + count, documents + stop - start
                start, taken = stop, taken + count
                if last < len(lengths):
                    yield _Shard(pieces, documents)
                    pieces, tokens, documents = [], 0, 0
        # Empty documents at the end of a part have no shard there.
        documents += source.manifest["total_documents"] - in_shards
    if tokens:
        yield _Shard(pieces, documents)


def _lengths(shard: Path, row: ShardRow) -> NDArray[np.int64]:
    """Return the number of ids of each document of a part's shard: int64 [documents]."""
    path = lengths_path(shard.parent, shard.name)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RefusedError(f"{path}: missing; copy or encode the part again", path=path) from None
    lengths = np.frombuffer(content[: len(content) // 8 * 8], "<u8")
    if 8 * len(lengths) != len(content) or len(lengths) != row.get("documents"):
        raise RefusedError(
            f"{path}: not the lengths of {shard.name}; copy or encode the part again", path=path
        )
    # Each of them first: a sum of arbitrary 64-bit integers may overflow to the right one.
    if (lengths > row["tokens"]).any() or int(lengths.sum()) != row["tokens"]:
        raise RefusedError(
            f"{path}: not the lengths of {shard.name}; copy or encode the part again", path=path
        )
    return lengths.astype(np.int64)


def _write(path: Path, shard: _Shard) -> str:
    """Write a shard, and return its SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_COPY_BYTES))
    with replacing(path) as file:
        for source, first, count in shard.pieces:
            with source.open("rb", buffering=0) as ids:
                ids.seek(ID_SIZE * first)
                left = ID_SIZE * count
                while left:
                    read = ids.readinto(buffer[: min(left, len(buffer))])
                    if not read:
                        raise RefusedError(
                            f"{source}: became shorter while it was read; copy the part again", path=source
                        )
                    file.write(buffer[:read])
                    digest.update(buffer[:read])
                    left -= read
    return digest.hexdigest()

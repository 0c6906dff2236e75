"""The directory that an encoding writes to: one encoding's at a time, continued only by the same one."""

from __future__ import annotations

import hashlib
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from apr import held
from apr.data.corpus import START
from apr.data.corpus_files import STDIN
from apr.data.listing import SHARD_NAME, list_shards
from apr.data.manifest import MANIFEST, SHARD_WRITERS, check_manifest, is_count, read_manifest, shard_rows
from apr.errors import FormatError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from apr.data.corpus import Corpus

# What a shard is called while it is written.
_HALF_WRITTEN = re.compile(r"^\.shard-[0-9]{4,6}\.bin\.tmp$")
# Characters of a value in an error: a list of files may be long.
_SHOWN = 120
# Files that an error names.
_NAMED = 3
# What makes two encodings the same one, beside `progress.options`.
_SAME = ("tokenizer_sha256", "eos_policy", "eos_token_id", "content_field", "normalization", "corpus_roots")
# And beside those in one that is complete, where it records them.
_SAME_IF_RECORDED = ("input_files", "input_bytes", "shard_tokens")


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Hold a directory of shards against every other encoding and repair, as `apr.held.claimed`."""
    with held.claimed(output, SHARD_WRITERS, "wait for it, or name another --output"):
        yield


def manifest_to_resume(output: Path, *, resume: bool, force: bool) -> dict[str, Any] | None:
    """The manifest of the encoding that is to be continued, or None for a new one.

    Raises:
        RefusedError: shards are there and neither flag is given, or nothing says where to resume; a file that
            no encoding writes bears a name that ends in .bin.
    """
    has_shards = bool(_shards_alone(output))
    has_manifest = (output / MANIFEST).exists()
    if force or not (has_shards or (has_manifest and not _nothing_yet(output))):
        return None
    if not resume:
        raise RefusedError(
            f"{output}: already holds shards: --resume continues an encoding that was cut off, "
            "--force replaces them"
        )
    if not has_manifest:
        raise RefusedError(f"{output}: shards without a manifest: nothing says where to resume; use --force")
    return read_manifest(output)


def _nothing_yet(output: Path) -> bool:
    """Whether the manifest is that of an encoding cut off in its first shard."""
    try:
        manifest = read_manifest(output)
    except FormatError:
        return False
    return manifest.get("complete") is False and manifest.get("shard_count") == 0


def check_same_encoding(output: Path, found: dict[str, Any], asked: dict[str, Any], corpus: Corpus) -> None:
    """Refuse to continue what another encoding began, and to take for complete what is not.

    Raises:
        RefusedError: the message says what differs.
    """
    complete = found.get("complete") is not False
    was, now = ({key: manifest.get(key) for key in _SAME} for manifest in (found, asked))
    if complete:
        if found.get("truncated"):
            raise RefusedError(
                f"{output}: cut off, and finished as it was by apr repair-manifest: use --force"
            )
        recorded = [key for key in _SAME_IF_RECORDED if found.get(key) is not None]
        was |= {key: found[key] for key in recorded}
        now |= {key: asked[key] for key in recorded}
    else:
        _check_unfinished(output / MANIFEST, found)
        was |= found["progress"]["options"]
        now |= asked["progress"]["options"]
    different = [key for key in was | now if was.get(key) != now.get(key)]
    # What happened to a file is told by its name; of a list of files only that it differs could be said.
    of_corpus = set(different) <= {"corpus_files", "input_files", "input_bytes"}
    if of_corpus and different and (moved := _came_or_went(found.get("input_files"), asked["input_files"])):
        raise RefusedError(f"{moved}: --force encodes the corpus anew")
    newer = _newer(corpus, output) if of_corpus and (complete or different) else []
    if newer:
        raise RefusedError(
            f"{newer[0]}: changed since it was encoded{_and_more(newer)}: --force encodes the corpus anew"
        )
    if "corpus_files" in different and of_corpus:
        raise RefusedError(
            f"{', '.join(corpus.roots)}: a file has another size or time than when the encoding began: "
            "--force encodes the corpus anew"
        )
    for key in different:
        raise RefusedError(
            f"{output}: cannot resume, {key} was {_short(was.get(key))} "
            f"and now is {_short(now.get(key))}: ask for the same, or use --force"
        )
    if complete:
        differences = check_manifest(found, list_shards(output))
        if differences:
            raise RefusedError(
                f"{output / MANIFEST}: disagrees with the files: {'; '.join(differences)}: use --force"
            )


def check_corpus_unchanged(output: Path, corpus: Corpus, skipped: set[str]) -> None:
    """Refuse to call shards complete whose corpus changed while they were made.

    A file that was skipped, and counted so, may be gone.

    Raises:
        RefusedError: a file has another size or time than at the start; the message names it.
    """
    changed = [str(file.path) for file in corpus.files if file.changed(skipped=str(file.path) in skipped)]
    if changed:
        raise RefusedError(
            f"{changed[0]}: changed while it was encoded{_and_more(changed)}: --force encodes the corpus "
            f"anew, apr repair-manifest {output} keeps the shards as they are"
        )


def check_kept_shards(output: Path, rows: list[dict[str, Any]]) -> None:
    """Check the shards that a resumed encoding builds upon, byte for byte.

    Raises:
        RefusedError: one is missing, or is not the one that was written; or there are more of them than one
            that the manifest did not know of when the encoding was cut off.
    """
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_sha256, [output / row["name"] for row in rows])
        for row, digest in zip(rows, digests, strict=True):
            if digest != row.get("sha256"):
                why = "is missing" if digest is None else "is not the shard that was written there"
                raise RefusedError(f"{output / row['name']}: {why}: --force encodes all of it anew")
            if (size := (output / row["name"]).stat().st_size) != 4 * row["tokens"]:
                raise RefusedError(
                    f"{output / MANIFEST}: tokens of {row['name']} is {row['tokens']}, its {size} bytes say "
                    f"{size // 4}: --force encodes all of it anew"
                )
    unknown = {path.name for path in output.glob("*.bin")} - {row["name"] for row in rows}
    if len(unknown) > 1:
        raise RefusedError(
            f"{output / max(unknown)}: a shard that the manifest does not know: --force encodes all anew"
        )


def clear_output(output: Path, *, keep: bool) -> None:
    """Remove what a killed encoding left half written; unless `keep`, the manifest and the shards too.

    Raises:
        RefusedError: something there is no shard; nothing has been removed then.
    """
    gone = [] if keep else _shards_alone(output)
    gone += [path for path in output.glob(".*.tmp") if _HALF_WRITTEN.match(path.name) and not path.is_dir()]
    if not keep:
        (output / MANIFEST).unlink(missing_ok=True)
    for path in gone:
        path.unlink()


def _shards_alone(output: Path) -> list[Path]:
    """The files of a directory that are called as shards are, where no other .bin is beside them.

    Raises:
        RefusedError: there is one, or something under a shard's name is no file; names it.
    """
    found = []
    with os.scandir(output) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.endswith(".bin"):
                continue
            if not SHARD_NAME.match(entry.name):
                raise RefusedError(
                    f"{entry.path}: no shard, and a directory of shards holds no other .bin: move it away"
                )
            if not entry.is_file(follow_symlinks=False):
                raise RefusedError(f"{entry.path}: no regular file under a shard's name: move it away")
            found.append(output / entry.name)
    return found


def _check_unfinished(path: Path, found: dict[str, Any]) -> None:
    """Refuse the manifest of an unfinished encoding that none of ours can be.

    Raises:
        RefusedError: the message names the key.
    """
    rows = found.get("shards")
    if not isinstance(rows, list) or len(shard_rows(found)) != len(rows):
        raise _unusable(path, "shards", rows)
    for key in ("tokens", "documents"):
        for n, row in enumerate(rows):
            if not is_count(row.get(key)):
                raise _unusable(path, f"shards[{n}].{key}", row.get(key))
    expected = {
        "shard_count": len(rows),
        "total_tokens": sum(row["tokens"] for row in rows),
        "total_documents": sum(row["documents"] for row in rows),
    }
    for key, value in expected.items():
        if not is_count(found.get(key)) or found[key] != value:
            raise _unusable(path, key, found.get(key), f", its shards say {value}")
    if not is_count(found.get("skipped_documents")):
        raise _unusable(path, "skipped_documents", found.get("skipped_documents"))
    seconds = found.get("elapsed_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise _unusable(path, "elapsed_seconds", seconds)
    progress = found.get("progress")
    if not isinstance(progress, dict) or not isinstance(progress.get("options"), dict):
        raise _unusable(path, "progress", progress)
    place = progress.get("place")
    if not isinstance(place, list) or len(place) != len(START) or not all(map(is_count, place)):
        raise _unusable(path, "progress.place", place)


def _unusable(path: Path, key: str, value: object, why: str = "") -> RefusedError:
    return RefusedError(f"{path}: does not say where to resume: {key} is {_short(value)}{why}: use --force")


def _came_or_went(before: object, now: list[str]) -> str | None:
    """The first file that is only in one of two lists, and what happened to it; None without one."""
    if not isinstance(before, list) or not all(isinstance(name, str) for name in before):
        return None
    for names, others, what in (
        (before, set(now), "removed from the corpus since the encoding began"),
        (now, set(before), "added to the corpus since the encoding began"),
    ):
        if only := [name for name in names if name not in others]:
            return f"{only[0]}: {what}{_and_more(only)}"
    return None


def _newer(corpus: Corpus, output: Path) -> list[str]:
    """Files that were written to, or put in their place, after the last shard was.

    The manifest does not record their times: it is to be the same for the same corpus. Its own is that of the
    last scan, which keeps in it what it read.
    """
    last = max(output.glob("shard-*.bin"), default=output / MANIFEST)
    written = last.stat().st_mtime_ns
    found = []
    for file in corpus.files:
        if str(file.path) != STDIN and file.path.exists():
            status = file.path.stat()
            if max(status.st_mtime_ns, status.st_ctime_ns) > written:
                found.append(str(file.path))
    return found


def _and_more(names: list[str]) -> str:
    more = f"{', '.join(names[1:_NAMED])}{' …' * (len(names) > _NAMED)}"
    return f" ({len(names)} files: also {more})" if len(names) > 1 else ""


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"

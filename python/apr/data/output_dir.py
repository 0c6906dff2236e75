"""The directory that an encoding writes to: one encoding at a time, continued only by the same one."""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from apr import held
from apr.data.corpus_stream import STDIN
from apr.data.documents import START
from apr.data.identity import same_in_manifests
from apr.data.listing import ID_SIZE, SHARD_NAME, list_shards
from apr.data.manifest import MANIFEST, SHARD_WRITERS, check_manifest, is_count, read_manifest, shard_rows
from apr.data.recorded import file_sha256
from apr.data.shard_writer import LENGTHS_SUFFIX
from apr.errors import FormatError, RefusedError
from apr.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from apr.data.corpus import Corpus
    from apr.data.manifest import ShardRow

# The temporary name of a shard, or of its lengths, while it is written.
_HALF_WRITTEN = re.compile(r"^\.shard-[0-9]{4,6}\.(bin|lengths)\.[0-9a-f]{8}\.[0-9]+-[0-9]+\.apr-tmp$")
# Characters of a value in an error; a list of files may be long.
_MAX_SHOWN = 120
# Files that an error names.
_MAX_NAMED = 3
# Two encodings are the same if these keys and `progress.options` are equal.
_SAME = (
    "tokenizer_sha256",
    "eos_policy",
    "eos_token_id",
    "content_field",
    "normalization",
    "corpus_roots",
    "part",
)
# A complete encoding has no `progress`. Of these keys, the ones that it records are compared: older versions
# recorded none of them.
_SAME_IF_RECORDED = ("input_files", "input_bytes", "shard_tokens")
# A difference in these keys means that the corpus changed, not the options.
_OF_CORPUS = {"corpus_files", "input_files", "input_bytes"}


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Lock a directory against other encodings and repairs; it is created if it does not exist.

    Raises:
        RefusedError: another encoding or repair has the lock.
        NotADirectoryError: a file has this name.
    """
    with held.claimed(output, SHARD_WRITERS, "wait for it, or use another --output"):
        yield


def manifest_to_resume(output: Path, *, resume: bool, force: bool) -> dict[str, Any] | None:
    """Return the manifest of the encoding to continue; None for a new one.

    Raises:
        RefusedError: the directory contains shards and neither flag is given, or no manifest says where to
            resume; a .bin file that no encoding writes.
    """
    has_shards = bool(_shard_paths(output))
    has_manifest = (output / MANIFEST).exists()
    # An encoding that was cut off before its first shard has nothing to lose. It once refused the same
    # command.
    in_first_shard = has_manifest and not has_shards and _is_in_first_shard(output)
    if force or in_first_shard or not (has_shards or has_manifest):
        return None
    if not resume:
        raise RefusedError(
            f"{output}: already contains shards; use --resume to continue an interrupted encoding, or "
            "--force to replace them",
            path=output,
        )
    if not has_manifest:
        raise RefusedError(
            f"{output}: contains shards but no manifest, so it cannot be resumed; use --force to start over",
            path=output,
        )
    return read_manifest(output)


def _is_in_first_shard(output: Path) -> bool:
    """Whether an encoding was cut off before its first shard was whole."""
    try:
        manifest = read_manifest(output)
    except FormatError:
        return False
    return manifest.get("complete") is False and manifest.get("shard_count") == 0


def check_same_encoding(
    output: Path, recorded: dict[str, Any], requested: Mapping[str, Any], corpus: Corpus
) -> None:
    """Check that an encoding may continue what is recorded, and that a complete one is still up to date.

    Args:
        output: the shard directory.
        recorded: its manifest.
        requested: the manifest that the requested encoding starts with.
        corpus: the requested corpus.

    Raises:
        RefusedError: an option or the corpus differs; the message names the difference.
    """
    if not same_in_manifests(recorded, requested):
        raise RefusedError(
            f"{output}: cannot resume: encoded with {recorded.get('tokenizer_dir')}, which is another "
            f"tokenizer than {requested['tokenizer_dir']} is now; use the same one, or --force to start over",
            path=output,
        )
    is_complete = recorded.get("complete") is not False
    before: dict[str, Any] = {key: recorded.get(key) for key in _SAME}
    now: dict[str, Any] = {key: requested.get(key) for key in _SAME}
    if is_complete:
        # How much of the corpus is missing is not recorded, so it cannot be called up to date.
        if recorded.get("truncated"):
            raise RefusedError(
                f"{output}: cannot resume, because apr repair-manifest closed this interrupted encoding; "
                "use --force to start over",
                path=output,
            )
        keys = [key for key in _SAME_IF_RECORDED if recorded.get(key) is not None]
        before |= {key: recorded[key] for key in keys}
        now |= {key: requested[key] for key in keys}
    else:
        _check_unfinished(output / MANIFEST, recorded)
        before |= recorded["progress"]["options"]
        now |= requested["progress"]["options"]
    # Another form of the same tokenizer has another hash.
    now["tokenizer_sha256"] = before["tokenizer_sha256"]
    different = [key for key in before | now if before.get(key) != now.get(key)]
    if set(different) <= _OF_CORPUS:
        _check_same_corpus(output, recorded, requested, corpus, different, is_complete=is_complete)
    if different:
        key = different[0]
        raise RefusedError(
            f"{output}: cannot resume: {key} was {_shortened(before.get(key))} and is now "
            f"{_shortened(now.get(key))}; use the same options, or --force to start over",
            path=output,
        )
    # A part of few documents may have no shard.
    if is_complete and recorded.get("shards") != []:
        differences = check_manifest(recorded, list_shards(output))
        if differences:
            raise RefusedError(
                f"{output / MANIFEST}: does not match the shards: {'; '.join(differences)}; "
                "use --force to start over",
                path=output / MANIFEST,
            )


def _check_same_corpus(
    output: Path,
    recorded: Mapping[str, Any],
    requested: Mapping[str, Any],
    corpus: Corpus,
    different: Sequence[str],
    *,
    is_complete: bool,
) -> None:
    """Refuse a corpus that changed, with the name of a file if one is known.

    Raises:
        RefusedError: a file was added, removed or changed.
    """
    # Names before hashes: that a digest of the file list differs tells nobody which file is gone.
    if different and (change := _added_or_removed(recorded.get("input_files"), requested["input_files"])):
        raise RefusedError(f"{change}; use --force to encode the whole corpus again")
    if is_complete or different:
        newer = _newer_files(corpus, output)
        if newer:
            raise RefusedError(
                f"{newer[0]}: changed since it was encoded{_others(newer)}; "
                "use --force to encode the whole corpus again",
                path=newer[0],
            )
    if "corpus_files" in different:
        raise RefusedError(
            f"{', '.join(corpus.roots)}: the size or time of a file has changed since the encoding began; "
            "use --force to encode the whole corpus again"
        )


def check_corpus_unchanged(output: Path, corpus: Corpus, skipped: set[str]) -> None:
    """Check that no file of the corpus changed while it was encoded.

    Args:
        output: the shard directory.
        corpus: the corpus.
        skipped: files that were skipped and counted as such; they may be gone.

    Raises:
        RefusedError: a file has another size or time than at the start; names it.
    """
    changed = [str(file.path) for file in corpus.files if file.changed(skipped=str(file.path) in skipped)]
    if changed:
        raise RefusedError(
            f"{changed[0]}: changed while it was encoded{_others(changed)}; use --force to encode the whole "
            f"corpus again, or apr repair-manifest {output} to keep the shards as they are",
            path=changed[0],
        )


def check_kept_shards(output: Path, rows: Sequence[ShardRow]) -> None:
    """Check every byte of the shards that a resumed encoding builds upon.

    Raises:
        RefusedError: a shard is missing or changed; there are more shards than the manifest counts, and than
            the one that may have been written before the manifest was.
    """
    # hashlib releases the interpreter's lock, so threads hash several shards at a time.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_sha256, [output / row["name"] for row in rows])
        for row, digest in zip(rows, digests, strict=True):
            path = output / row["name"]
            if digest is None:
                raise RefusedError(f"{path}: is missing; use --force to start over", path=path)
            if digest != row.get("sha256"):
                raise RefusedError(
                    f"{path}: changed since it was written; use --force to start over", path=path
                )
            tokens = path.stat().st_size // ID_SIZE
            if tokens * ID_SIZE != path.stat().st_size or tokens != row["tokens"]:
                raise RefusedError(
                    f"{output / MANIFEST}: {row['name']} has {counted(row['tokens'], 'token')}, but the file "
                    f"contains {tokens}; use --force to start over",
                    path=output / MANIFEST,
                )
    # One is normal: a kill may come after the shard was written and before the manifest that counts it.
    uncounted = {path.name for path in output.glob("*.bin")} - {row["name"] for row in rows}
    if len(uncounted) > 1:
        raise RefusedError(
            f"{output / max(uncounted)}: the manifest does not list this shard; use --force to start over",
            path=output / max(uncounted),
        )


def clear_output(output: Path, *, keep: bool) -> None:
    """Remove half-written files of a killed encoding; unless `keep`, also the manifest and all shards.

    Raises:
        RefusedError: a .bin file that no encoding writes; nothing is removed then.
    """
    doomed = [] if keep else _shard_paths(output)
    temporary = (path for path in output.glob(".*.apr-tmp") if _HALF_WRITTEN.match(path.name))
    doomed += [path for path in temporary if not path.is_dir()]
    if not keep:
        doomed += [path for path in output.glob(f"shard-*{LENGTHS_SUFFIX}") if not path.is_dir()]
    if not keep:
        # First, so that a kill in between does not leave a manifest without its shards.
        (output / MANIFEST).unlink(missing_ok=True)
    for path in doomed:
        path.unlink()


def _shard_paths(output: Path) -> list[Path]:
    """Return the files that are named as shards are.

    Raises:
        RefusedError: another .bin file, or anything but a file under a shard's name.
    """
    # --force removes these files. It once removed a backup named shard-old-backup.bin, and stopped half way
    # at a folder with the name of a shard. So everything is checked before anything is removed.
    paths = []
    with os.scandir(output) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.endswith(".bin"):
                continue
            if not SHARD_NAME.match(entry.name):
                raise RefusedError(
                    f"{entry.path}: not the name of a shard; move it out of the directory", path=entry.path
                )
            if not entry.is_file(follow_symlinks=False):
                raise RefusedError(
                    f"{entry.path}: not a regular file; move it out of the directory", path=entry.path
                )
            paths.append(output / entry.name)
    return paths


def _check_unfinished(path: Path, manifest: dict[str, Any]) -> None:
    """Check the keys of an unfinished encoding's manifest that resuming relies on.

    Raises:
        RefusedError: the message names the key.
    """
    # A manifest that was edited by hand once ended in a KeyError, or in wrong counts.
    rows = manifest.get("shards")
    if not isinstance(rows, list) or len(shard_rows(manifest)) != len(rows):
        raise _cannot_resume(path, "shards", rows)
    for key in ("tokens", "documents"):
        for n, row in enumerate(rows):
            if not is_count(row.get(key)):
                raise _cannot_resume(path, f"shards[{n}].{key}", row.get(key))
    expected = {
        "shard_count": len(rows),
        "total_tokens": sum(row["tokens"] for row in rows),
        "total_documents": sum(row["documents"] for row in rows),
    }
    for key, value in expected.items():
        if not is_count(manifest.get(key)) or manifest[key] != value:
            raise _cannot_resume(path, key, manifest.get(key), f", but its rows of shards add up to {value}")
    if not is_count(manifest.get("skipped_documents")):
        raise _cannot_resume(path, "skipped_documents", manifest.get("skipped_documents"))
    text_bytes = manifest.get("text_bytes")
    if text_bytes is not None and not is_count(text_bytes):
        raise _cannot_resume(path, "text_bytes", text_bytes)
    seconds = manifest.get("elapsed_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise _cannot_resume(path, "elapsed_seconds", seconds)
    progress = manifest.get("progress")
    if not isinstance(progress, dict) or not isinstance(progress.get("options"), dict):
        raise _cannot_resume(path, "progress", progress)
    place = progress.get("place")
    if not isinstance(place, list) or len(place) != len(START) or not all(map(is_count, place)):
        raise _cannot_resume(path, "progress.place", place)


def _cannot_resume(path: Path, key: str, value: object, why: str = "") -> RefusedError:
    return RefusedError(
        f"{path}: cannot resume: {key} is {_shortened(value)}{why}; use --force to start over", path=path
    )


def _added_or_removed(before: object, now: list[str]) -> str | None:
    """Return the first file that is in only one of two lists, with what happened to it; None without one."""
    if not isinstance(before, list) or not all(isinstance(name, str) for name in before):
        return None
    current, earlier = set(now), set(before)
    removed = [name for name in before if name not in current]
    if removed:
        return f"{removed[0]}: removed from the corpus since the encoding began{_others(removed)}"
    added = [name for name in now if name not in earlier]
    if added:
        return f"{added[0]}: added to the corpus since the encoding began{_others(added)}"
    return None


def _newer_files(corpus: Corpus, output: Path) -> list[str]:
    """Return the files that were written or replaced after the last shard was.

    The manifest does not record times, so that the same corpus always has the same manifest. Nor is the
    manifest's own time of use: it is rewritten when a scan is added to it.
    """
    last = max(output.glob("shard-*.bin"), default=output / MANIFEST)
    # The shard's time, not the manifest's, which a scan that is added later renews.
    written = last.stat().st_mtime_ns
    newer = []
    for file in corpus.files:
        if str(file.path) != STDIN and file.path.exists():
            status = file.path.stat()
            # The change time too: a file that is moved into place may have an old modification time.
            if max(status.st_mtime_ns, status.st_ctime_ns) > written:
                newer.append(str(file.path))
    return newer


def _others(names: list[str]) -> str:
    """Return what to add to the first of several names in an error."""
    if len(names) == 1:
        return ""
    more = " …" if len(names) > _MAX_NAMED else ""
    return f" ({len(names)} files, also {', '.join(names[1:_MAX_NAMED])}{more})"


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"

"""`manifest.json` of a shard directory: its keys, reading, writing, and where it disagrees with the files."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

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


class ShardRow(TypedDict):
    """One row of the manifest's `shards`, in stream order."""

    name: str
    tokens: int
    documents: NotRequired[int]
    """Documents that end in this shard."""
    sha256: NotRequired[str | None]
    """SHA-256 of the file, in hex."""


class Progress(TypedDict):
    """Where an unfinished encoding resumes."""

    place: list[int]
    """The fields of `apr.data.corpus.Place`: file, line or row, byte."""
    options: dict[str, Any]
    """Options and a digest of the corpus that a resumed encoding must share."""


class Manifest(TypedDict, total=False):
    """The keys of schema `pretokenize-bin-v1`.

    A reader needs `schema`, `shard_count` and `total_tokens`. Every other key may be absent or null, and
    unknown keys are kept.
    """

    schema: str
    complete: bool
    """False while an encoding is unfinished; nothing trains on such a directory."""
    tokenizer_dir: str | None
    """Path of the tokenizer as it was given."""
    tokenizer_sha256: str
    tokenizer_identity: str
    """What decides the tokenizer's ids, the same in every form that it is stored in: `apr.data.identity`."""
    vocab_size: int | None
    """The highest id of the vocabulary + 1."""
    eos_policy: str
    """Where the end-of-text token stands: none, between or after documents."""
    eos_token_id: int | None
    unk_token_id: int | None
    eos_token_count: int
    """End-of-text tokens that the encoder wrote."""
    shard_count: int
    total_tokens: int
    total_documents: int
    skipped_documents: int
    """Documents that could not be read, or had no text."""
    text_bytes: int | None
    """Bytes of all documents' text in UTF-8."""
    content_field: str
    normalization: str
    """Unicode form of the texts: none or nfc."""
    input_format: str
    """text, jsonl, parquet or mixed."""
    input_files: list[str]
    input_bytes: int | None
    """Stored size of all input files; null if standard input was one."""
    skipped_hidden: int
    """Hidden files and folders of the corpus that were left out. A folder counts as one."""
    corpus_roots: list[str]
    """Paths of the corpus as they were given."""
    corpus_sha256: str
    """SHA-256 over the hex digests of all shards, in stream order."""
    num_workers: int
    elapsed_seconds: float
    seq_length_hint: int | None
    """Always null here; other producers record the window length that they had in mind."""
    shard_tokens: int
    """The option `--shard-tokens`."""
    producer_version: str
    text_loss: str
    """What the tokenizer loses of the text, if `--allow-text-loss` allowed it."""
    part: str
    """I/N if these are the shards of one part of a corpus, which `apr tokenize merge` joins."""
    part_range: dict[str, Any]
    """Of a part: the places where it starts and stops, the digits of a whole encoding's shard names, and the
    SHA-256 of the corpus' file list."""
    shards: list[ShardRow]
    progress: Progress
    """Present only while `complete` is false."""
    scan: dict[str, Any]
    """The fields of `apr.data.scan.Scan`."""
    scan_sha256: str
    """SHA-256 of the canonical JSON of `scan`; a scan that does not match is not used."""
    truncated: bool
    """The encoding was cut off and finished by a repair."""
    repair: bool
    repaired_at: str
    """UTC, as in 2026-11-30T12:00:00Z."""
    source: str
    note: str


# Keys that are true only of the shards that were counted.
_COUNTS = {
    "shard_count",
    "total_tokens",
    "total_documents",
    "skipped_documents",
    "text_bytes",
    "eos_token_count",
    "corpus_sha256",
    "scan",
    "scan_sha256",
}
# Other producers leave these out, or set them to null.
_OPTIONAL_COUNTS = ("total_documents", "skipped_documents", "text_bytes", "eos_token_count")
_IDS = ("vocab_size", "eos_token_id", "unk_token_id")


def read_manifest(directory: str | PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a shard directory, including unknown keys.

    Raises:
        FileNotFoundError: no manifest; the message names the command that rebuilds it.
        FormatError: the file is not a JSON object.
    """
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        reason = f"no manifest; rebuild it with apr repair-manifest {directory}"
        raise FileNotFoundError(error.errno, reason, str(path)) from None
    except (ValueError, RecursionError) as error:  # deeply nested arrays exceed the recursion limit
        raise FormatError(
            f"{path}: invalid JSON ({error}); rebuild it with apr repair-manifest {directory} --force",
            path=path,
        ) from None
    if not isinstance(manifest, dict):
        raise FormatError(
            f"{path}: not a JSON object; rebuild it with apr repair-manifest {directory} --force", path=path
        )
    return manifest


def write_manifest(directory: str | PathLike[str], manifest: Mapping[str, object]) -> None:
    """Write the manifest atomically, as indented ASCII JSON in the order of its keys.

    Raises:
        OSError: writing failed; an existing manifest is unchanged.
    """
    # ASCII, so that readers of any encoding agree, and NaN is refused because it is not JSON.
    content = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    write_atomically(Path(directory) / MANIFEST, content.encode())


class ManifestWriter:
    """Writes the manifest of a directory again and again, each time with more rows of shards.

    A row becomes JSON once: that of all rows takes 40 ms where there are 10,000, after each of them.

    Args:
        directory: the shard directory.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        self._path = Path(directory) / MANIFEST
        self._rows: list[str] = []

    def write(self, manifest: Mapping[str, object], rows: Sequence[ShardRow]) -> None:
        """Write a manifest atomically, in the form of `write_manifest`.

        Args:
            manifest: the manifest; what it has under `shards` is replaced.
            rows: its rows, which begin with those of the write before.

        Raises:
            OSError: writing failed; an existing manifest is unchanged.
        """
        self._rows += [indent(json.dumps(row, indent=2), "    ") for row in rows[len(self._rows) :]]
        rest = {key: [] if key == "shards" else value for key, value in manifest.items()}
        content = json.dumps(rest, indent=2, allow_nan=False) + "\n"
        if self._rows:
            # In a string, the line break would be escaped.
            shards = ",\n".join(self._rows)
            content = content.replace('\n  "shards": []', f'\n  "shards": [\n{shards}\n  ]', 1)
        write_atomically(self._path, content.encode())


def check_manifest(manifest: Mapping[str, Any], shards: Sequence[Shard]) -> list[str]:
    """Return where a manifest disagrees with the shards beside it, one line per field.

    `schema`, `shard_count` and `total_tokens` are required. `shards` is compared if its rows have our form.
    """
    expected = {
        "schema": SCHEMA,
        "shard_count": len(shards),
        "total_tokens": sum(shard.tokens for shard in shards),
    }
    problems = []
    for key, value in expected.items():
        # The type is compared too: true == 1 and 4.0 == 4 in Python, but neither is a count in JSON.
        if type(manifest.get(key)) is not type(value) or manifest[key] != value:
            recorded = repr(manifest[key]) if key in manifest else "missing"
            reason = f"must be {value!r}" if key == "schema" else f"the files contain {value}"
            problems.append(f"{key} is {recorded}, but {reason}")
    problems += [
        f"{key} is {manifest[key]!r}, not an unsigned 32-bit integer"
        for key in _IDS
        if not _is_id_or_null(manifest.get(key))
    ]
    if not isinstance(manifest.get("complete"), bool | None):
        problems.append(f"complete is {manifest['complete']!r}, not a boolean")
    problems += _count_problems(manifest).values()
    rows = shard_rows(manifest)
    # Without rows in our form there is nothing to compare: another producer may keep something else there.
    if rows:
        problems += _row_problems(rows, shards)
    return problems


def is_count(value: object) -> bool:
    """Whether a value is an integer that is at least 0; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shard_rows(manifest: Mapping[str, Any]) -> list[ShardRow]:
    """Return the rows of `shards`; empty if another producer keeps something else under that key."""
    rows = manifest.get("shards")
    if not isinstance(rows, list):
        return []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or "tokens" not in row:
            return []
    return rows


def still_valid(manifest: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """Return the part of a manifest that is true of these shards.

    All of it if `check_manifest` has no objection. Otherwise rows of shards with an unchanged token count are
    kept with their hashes, and the others keep only their token count. If the number of shards or tokens
    changed, or was never recorded, document counts and other totals are dropped.
    """
    if not manifest or not check_manifest(manifest, shards):
        return dict(manifest)
    # Ids of another type would stop every reader, whatever the shards are.
    kept = {key: value for key, value in manifest.items() if key not in _IDS or _is_id_or_null(value)}
    recorded = {row["name"]: row for row in shard_rows(manifest) if isinstance(row.get("sha256"), str | None)}
    if recorded:
        rows: list[ShardRow] = []
        for shard in shards:
            row = recorded.get(shard.name)
            if row is None or row["tokens"] != shard.tokens:
                # Another file under this name, or a new one: nobody has counted its documents or hashed it.
                row = {"name": shard.name, "tokens": shard.tokens}
            rows.append(row)
        kept["shards"] = rows
    totals = (len(shards), sum(shard.tokens for shard in shards))
    same_totals = (manifest.get("shard_count"), manifest.get("total_tokens")) == totals
    if not same_totals or kept.get("shards") != manifest.get("shards"):
        kept = {key: value for key, value in kept.items() if key not in _COUNTS}
    impossible = _count_problems(kept)
    return {key: value for key, value in kept.items() if key not in impossible}


def _count_problems(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose values cannot be true whatever the shards contain, each with a line."""
    problems = {
        key: f"{key} is {manifest[key]!r}, not a count"
        for key in _OPTIONAL_COUNTS
        if manifest.get(key) is not None and not is_count(manifest[key])
    }
    if not isinstance(manifest.get("corpus_sha256"), str | None):
        problems["corpus_sha256"] = f"corpus_sha256 is {manifest['corpus_sha256']!r}, not a string"
    documents = [row.get("documents") for row in shard_rows(manifest)]
    total = manifest.get("total_documents")
    if documents and total is not None and all(map(is_count, documents)):
        in_rows = sum(row["documents"] for row in shard_rows(manifest))
        # Without end-of-text tokens, empty documents at the end of a corpus are in no shard.
        may_exceed = manifest.get("eos_policy") not in ("between", "after")
        if total != in_rows and not (may_exceed and is_count(total) and total > in_rows):
            problems["total_documents"] = (
                f"total_documents is {total!r}, but the rows of shards add up to {in_rows}"
            )
    return problems


def _is_id_or_null(value: object) -> bool:
    # An id of a shard has 32 bits, so no special id can be larger.
    return value is None or (is_count(value) and isinstance(value, int) and value < 2**32)


def _row_problems(rows: Sequence[ShardRow], shards: Sequence[Shard]) -> list[str]:
    if not all(isinstance(row.get("sha256"), str | None) for row in rows):
        return ["shards has a row whose sha256 is not a string"]
    recorded = {row["name"]: row["tokens"] for row in rows}
    actual = {shard.name: shard.tokens for shard in shards}
    return [
        f"{name}: {_tokens(recorded.get(name))} recorded, {_tokens(actual.get(name))} in the file"
        for name in sorted(recorded.keys() | actual.keys())
        if recorded.get(name) != actual.get(name)
    ]


def _tokens(count: object) -> str:
    return "no tokens" if count is None else "1 token" if count == 1 else f"{count} tokens"

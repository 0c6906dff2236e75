"""Token files of other tools to shards: the same ids, checked against the tokenizer, with their origin."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path  # noqa: TC003 (options are read from the annotations at run time)
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import numpy as np
from annotated_types import Ge

from apr.data.identity import same_in_manifests
from apr.data.listing import ID_DTYPE, list_shards
from apr.data.manifest import MANIFEST, SCHEMA, ManifestWriter, check_manifest, shard_rows, write_manifest
from apr.data.output_dir import check_kept_shards, clear_output, lock_output, manifest_to_resume
from apr.data.recorded import file_sha256
from apr.data.scan import corpus_sha256
from apr.data.shard_writer import name_digits
from apr.data.token_files import FORMATS, IdType, TokenFile, find_token_files, open_token_file
from apr.data.tokenizers import load_tokenizer
from apr.errors import FormatError, OptionsError, RefusedError, UsageError
from apr.files import replacing
from apr.options import Metavar, Unset, check_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.manifest import Manifest, ShardRow

# Ids that are read at a time.
_CHUNK = 1 << 20
# Ids at the start that are decoded for the user to look at, and the characters of them that are shown.
_DECODED, _SHOWN = 64, 60


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """How token files are imported; the flags of `apr tokenize import` have the same names.

    Raises:
        OptionsError: values are out of range or contradict each other; it is a UsageError.
    """

    tokenizer: Path
    """The tokenizer that the ids are of: a tokenizer.json, a directory that holds one or vocab.json and
    merges.txt, or an .apr or .gguf file."""
    dtype: Annotated[IdType | None, Unset("recognized")] = None
    """Type of the ids in files without a header."""
    eos_token: Annotated[str | None, Metavar("TOKEN"), Unset("the tokenizer's own")] = None
    """End-of-text token."""
    insert_eos: bool = False
    """Insert an end-of-text id after each document that does not end with one. Needs the document index of
    datatrove, Megatron or Dolma."""
    shard_tokens: Annotated[int, Ge(1)] = 10_000_000
    """Shard size in tokens. A shard ends after the document that reaches this size."""
    resume: bool = False
    """Resume an import that was interrupted."""
    force: bool = False
    """Replace shards that are already in the output directory."""

    def __post_init__(self) -> None:
        problems = check_options(self)
        if self.resume and self.force:
            problems.append(UsageError("--resume cannot be used with --force; resume, or start over"))
        if problems:
            raise OptionsError(problems)


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ImportSettings):
    """What to import, where to, and how."""

    sources: tuple[Path, ...]
    """Token files, or directories of them."""
    output: Path
    """Directory for the shards."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import."""

    manifest: Manifest
    nbytes: int
    """Bytes of ids that this run read; 0 if nothing was left to do."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What a user should know about the files."""
    complete_before: bool = False
    """Whether nothing was left to do."""


def import_tokens(
    options: ImportOptions, on_progress: Callable[[int, int], None] = lambda _read, _total: None
) -> ImportReport:
    """Write the ids of other tools' token files to a directory of shards.

    Memory does not grow with the files. If the process ends at any moment, the whole shards stay with a
    manifest that counts them; `resume` continues from there.

    Args:
        options: what to import, with what tokenizer, and where to.
        on_progress: called with the bytes of ids that were read, and of all.

    Raises:
        FileNotFoundError: a file is missing.
        FormatError, TruncatedError, UnsupportedError: a file is damaged or of a kind that is not read; `path`
            and `offset` say where.
        RefusedError: an id is not in the vocabulary; a file has no ids or changed meanwhile; the directory
            already contains shards, or another process writes there.
        UsageError: options that do not fit the files.
        OSError: reading or writing failed; `resume` continues.
    """
    started = time.monotonic()
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    paths = find_token_files(options.sources, options.output)
    files = [open_token_file(path, tokenizer.vocab_size, options.dtype) for path in paths]
    _check_together(files, options, tokenizer)
    with lock_output(options.output):
        earlier = manifest_to_resume(options.output, resume=options.resume, force=options.force)
        work = _Import(options, tokenizer, files, started)
        if earlier is not None:
            work.check_earlier(earlier)
            if earlier.get("complete") is not False:
                seconds = time.monotonic() - started
                return ImportReport(cast("Manifest", earlier), 0, seconds, complete_before=True)
        clear_output(options.output, keep=earlier is not None)
        if earlier is None:
            # Before the first shard, so that a directory that is left by a kill says what it is.
            write_manifest(options.output, work.manifest())
        try:
            work.run(on_progress)
        except (FormatError, RefusedError):
            if not work.rows:
                (options.output / MANIFEST).unlink()
            raise
        manifest = work.manifest(complete=True)
        write_manifest(options.output, manifest)
    return ImportReport(manifest, work.read, time.monotonic() - started, tuple(work.notes(manifest)))


def _check_together(files: Sequence[TokenFile], options: ImportOptions, tokenizer: LoadedTokenizer) -> None:
    first = files[0]
    for file in files[1:]:
        if file.format != first.format:
            raise UsageError(
                f"{file.path}: a file of {FORMATS[file.format]}, but {first.path} is one of "
                f"{FORMATS[first.format]}; import each format into a directory of its own",
                path=file.path,
            )
    if options.insert_eos:
        if tokenizer.eos_id is None:
            raise UsageError(
                f"{options.tokenizer}: no end-of-text token is configured; name it with --eos-token",
                path=options.tokenizer,
            )
        for file in files:
            if file.ends is None:
                raise UsageError(
                    f"{file.path}: no index says where its documents end; leave out --insert-eos",
                    path=file.path,
                )


class _Piece(NamedTuple):
    """Consecutive ids of one file."""

    file: int
    ids: NDArray[np.uint32]
    ends: NDArray[np.int64]
    """How many of the ids are before the end of each document that ends here."""
    source_ends: NDArray[np.int64]
    """The same in ids of the file, without those that were inserted."""
    source_count: int
    """Ids of the file."""
    is_indexed: bool
    """Whether an index says where documents end, and not end-of-text ids."""

    def source(self, count: int) -> int:
        """Return how many ids of the file the first `count` ids are."""
        if count == len(self.ids):
            return self.source_count
        at = int(np.searchsorted(self.ends, count, "right"))
        # Ids are inserted at the ends of documents only.
        return count if at == 0 else int(self.source_ends[at - 1]) + count - int(self.ends[at - 1])

    def after(self, count: int) -> _Piece | None:
        """Return the piece without the first `count` ids; None if nothing is left."""
        if count == len(self.ids):
            return None
        at, source = int(np.searchsorted(self.ends, count, "right")), self.source(count)
        return _Piece(
            self.file,
            self.ids[count:],
            self.ends[at:] - count,
            self.source_ends[at:] - source,
            self.source_count - source,
            self.is_indexed,
        )


@dataclass
class _Position:
    """What is in whole shards."""

    file: int = 0
    """Files before the next id."""
    source: int = 0
    """Ids of its file before it."""
    documents: int = 0
    eos: int = 0
    """End-of-text ids."""
    with_eos: int = 0
    """Documents that end with one."""
    inserted: int = 0
    """End-of-text ids that were inserted."""
    open: int = 0
    """Ids after the last end of a document."""
    hashes: list[str] = field(default_factory=list)
    """SHA-256 of the files before this one."""


class _Upcoming:
    """The ends of a file's documents, taken in order."""

    def __init__(self, blocks: Iterator[NDArray[np.int64]]) -> None:
        self._blocks = blocks
        self._block = np.empty(0, np.int64)

    def until(self, position: int) -> NDArray[np.int64]:
        """Return the next ends, up to a position."""
        taken = []
        while True:
            count = int(np.searchsorted(self._block, position, "right"))
            taken.append(self._block[:count])
            self._block = self._block[count:]
            if len(self._block) or (block := next(self._blocks, None)) is None:
                return np.concatenate(taken)
            self._block = block


@dataclass
class _Import:
    """The state of an import."""

    options: ImportOptions
    tokenizer: LoadedTokenizer
    files: list[TokenFile]
    started: float
    rows: list[ShardRow] = field(default_factory=list)
    position: _Position = field(default_factory=_Position)
    read: int = 0
    """Bytes of ids that this run read."""
    _seconds_before: float = 0.0

    def __post_init__(self) -> None:
        self.is_indexed = self.files[0].ends is not None
        total = sum(file.count for file in self.files)
        self._digits = name_digits(total, self.options.shard_tokens)
        self._all = [path for file in self.files for path in (file.path, *file.beside)]
        self._times = {path: _size_and_time(path) for path in self._all}
        self._hashes: list[str] = []

    @property
    def _identity(self) -> dict[str, Any]:
        """What an import and the one that resumes it share."""
        return {
            "files": [[str(path), *self._times[path]] for path in self._all],
            "dtypes": [file.dtype.str for file in self.files],
            "eos_token_id": self.tokenizer.eos_id,
            "insert_eos": self.options.insert_eos,
            "shard_tokens": self.options.shard_tokens,
        }

    def check_earlier(self, earlier: dict[str, Any]) -> None:
        """Check that this import may continue what a manifest records, and take up its position.

        Raises:
            RefusedError: it is something else, or a shard or a file changed since.
        """
        output = self.options.output
        origin, progress = earlier.get("imported"), earlier.get("progress")
        if not isinstance(origin, dict) or not same_in_manifests(
            earlier, cast("dict[str, Any]", self.manifest())
        ):
            raise RefusedError(
                f"{output}: cannot resume: its shards are not an import of these files with this tokenizer; "
                "use --force to replace them",
                path=output,
            )
        if earlier.get("complete") is not False:
            self._check_complete(earlier, origin)
            return
        options = progress.get("options") if isinstance(progress, dict) else None
        if not isinstance(options, dict) or options.get("import") != self._identity:
            raise RefusedError(
                f"{output}: cannot resume: the options, or the size or time of a file, are not those of "
                "before; use --force to start over",
                path=output,
            )
        rows = shard_rows(earlier)
        check_kept_shards(output, rows)
        try:
            self.position = _Position(**options["position"])
        except (KeyError, TypeError):
            raise RefusedError(
                f"{output / MANIFEST}: cannot resume: progress is damaged; use --force to start over",
                path=output / MANIFEST,
            ) from None
        self.rows = list(rows)
        self._hashes = list(self.position.hashes)
        self._seconds_before = earlier["elapsed_seconds"]
        if rows:
            self._digits = len(rows[0]["name"]) - len("shard-.bin")

    def _check_complete(self, earlier: dict[str, Any], origin: dict[str, Any]) -> None:
        """Check that a complete import is one of these files as they are now."""
        output = self.options.output
        wanted = {"insert_eos": self.options.insert_eos, "shard_tokens": self.options.shard_tokens}
        recorded = {"insert_eos": origin.get("insert_eos"), "shard_tokens": earlier.get("shard_tokens")}
        files = origin.get("files")
        hashes = {row["path"]: row["sha256"] for row in files} if isinstance(files, list) else {}
        changed = [path for path in self._all if hashes.get(str(path)) != file_sha256(path)]
        if changed or len(hashes) != len(self._all):
            raise RefusedError(
                f"{changed[0] if changed else output}: changed since the import; use --force to start over",
                path=changed[0] if changed else output,
            )
        if wanted != recorded or (problems := check_manifest(earlier, list_shards(output))):
            reason = "the options differ" if wanted != recorded else "; ".join(problems)
            raise RefusedError(f"{output}: cannot resume: {reason}; use --force to start over", path=output)

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        """Write the shards that are not written yet.

        Raises:
            RefusedError: an id is not in the vocabulary, or a file changed meanwhile.
        """
        total = sum(file.count * file.dtype.itemsize for file in self.files)
        done = sum(file.count * file.dtype.itemsize for file in self.files[: self.position.file])
        done += self.position.source * self.files[self.position.file].dtype.itemsize
        pieces = self._pieces()
        piece = next(pieces, None)
        writer = ManifestWriter(self.options.output)
        while piece is not None:
            name = f"shard-{len(self.rows):0{self._digits}}.bin"
            if len(name) > self._digits + len("shard-.bin"):
                raise RefusedError(
                    f"{self.options.output}: too many shards; increase --shard-tokens",
                    path=self.options.output,
                )
            digest = hashlib.sha256()
            tokens, before, is_full, has_end = 0, self.position.documents, False, False
            with replacing(self.options.output / name) as file:
                while piece is not None and not is_full:
                    has_end = has_end or bool(len(piece.ends))
                    count, is_full = self._end_of_shard(piece, tokens, has_end=has_end)
                    file.write(piece.ids[:count].data)
                    digest.update(piece.ids[:count].data)
                    tokens += count
                    self._advance(piece, count)
                    piece = piece.after(count) or next(pieces, None)
                    on_progress(done + self.read, total)
                if piece is None and self.position.open and (self.position.documents or self.position.eos):
                    # The last document has no end-of-text id.
                    self.position.documents += 1
                    self.position.open = 0
            row: ShardRow = {
                "name": name,
                "tokens": tokens,
                "documents": self.position.documents - before,
                "sha256": digest.hexdigest(),
            }
            self.rows.append(row)
            writer.write(self.manifest(), self.rows)
        for path in self._all:
            if _size_and_time(path) != self._times[path]:
                raise RefusedError(
                    f"{path}: changed while it was imported; use --force to start over", path=path
                )

    def _end_of_shard(self, piece: _Piece, tokens: int, *, has_end: bool) -> tuple[int, bool]:
        """Return how many ids of a piece belong to the open shard, and whether they fill it."""
        room = self.options.shard_tokens - tokens
        at = int(np.searchsorted(piece.ends, max(room, 1)))
        if at < len(piece.ends):
            return int(piece.ends[at]), True
        # Without any end of a document in sight, a shard would be as large as all files.
        if not piece.is_indexed and not has_end and room <= len(piece.ids):
            return room, True
        return len(piece.ids), False

    def _advance(self, piece: _Piece, count: int) -> None:
        """Count the first ids of a piece."""
        position = self.position
        ids, ends = piece.ids[:count], piece.ends[: np.searchsorted(piece.ends, count, "right")]
        lengths = np.diff(ends, prepend=-position.open)
        # Of end-of-text ids one after another, the first ends a document.
        is_document = np.full(len(ends), True) if piece.is_indexed else lengths > 1
        if self.tokenizer.eos_id is not None:
            position.eos += int(np.count_nonzero(ids == self.tokenizer.eos_id))
            with_eos = is_document & (lengths > 0)
            # An end at 0 is that of a document in the piece before.
            with_eos[with_eos] = ids[np.maximum(ends[with_eos], 1) - 1] == self.tokenizer.eos_id
            position.with_eos += int(with_eos.sum())
        position.documents += int(is_document.sum())
        position.open = count - int(ends[-1]) if len(ends) else position.open + count
        source = piece.source(count)
        position.inserted += count - source
        if piece.file != position.file:
            position.file, position.source = piece.file, 0
        position.source += source
        position.hashes = self._hashes[: piece.file]

    def _pieces(self) -> Iterator[_Piece]:
        """Yield the ids of all files from the position on."""
        first = self.position.file
        source, is_open = self.position.source, self.position.open
        for number, file in enumerate(self.files[first:], first):
            ends = None if file.ends is None else _Upcoming(file.ends())
            previous = max(0, source - is_open)
            if ends is not None and source:
                ends.until(source)
            for start, ids in self._chunks(file, source):
                if ends is not None:
                    found = ends.until(start + len(ids))
                    yield self._with_ends(number, ids, found - start, previous - start)
                    previous = int(found[-1]) if len(found) else previous
                else:
                    found = np.empty(0, np.int64)
                    if self.tokenizer.eos_id is not None:
                        found = np.flatnonzero(ids == self.tokenizer.eos_id) + 1
                    yield _Piece(number, ids, found, found, len(ids), is_indexed=False)
            source = is_open = 0

    def _with_ends(
        self, number: int, ids: NDArray[np.uint32], ends: NDArray[np.int64], previous: int
    ) -> _Piece:
        """Return a piece whose documents an index knows, with the end-of-text ids that are to be inserted."""
        count = len(ids)
        if not self.options.insert_eos or not len(ends):
            return _Piece(number, ids, ends, ends, count, is_indexed=True)
        eos_id = cast("int", self.tokenizer.eos_id)
        lacks = np.diff(ends, prepend=previous) > 0
        lacks[lacks] = ids[np.maximum(ends[lacks], 1) - 1] != eos_id
        ids = np.insert(ids, ends[lacks], np.uint32(eos_id))
        return _Piece(number, ids, ends + np.cumsum(lacks), ends, count, is_indexed=True)

    def _chunks(self, file: TokenFile, first: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Yield the ids of a file from one on, checked, each chunk with the position of its first id."""
        digest = hashlib.sha256()
        width = file.dtype.itemsize
        with file.path.open("rb", buffering=0) as stream:
            # The header, and the ids that are in shards already, are part of the hash.
            left = file.start + first * width
            while left:
                digest.update(data := _read(stream, min(left, _CHUNK), file.path))
                left -= len(data)
            for start in range(first, file.count, _CHUNK):
                data = _read(stream, width * min(_CHUNK, file.count - start), file.path)
                digest.update(data)
                ids = np.frombuffer(data, file.dtype)
                self._check_range(file, start, ids)
                yield start, ids.astype(ID_DTYPE)
                self.read += len(data)
        self._hashes.append(digest.hexdigest())

    def _check_range(self, file: TokenFile, start: int, ids: NDArray[Any]) -> None:
        limit = self.tokenizer.vocab_size
        if ids.max() < limit and ids.min() >= 0:
            return
        at = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
        offset = file.start + (start + at) * file.dtype.itemsize
        raise RefusedError(
            f"{file.path}: id {ids[at]} at byte {offset} is not in the vocabulary of "
            f"{self.tokenizer.source}, which ends at {limit - 1}; pass the tokenizer that wrote the file",
            path=file.path,
            offset=offset,
        )

    def manifest(self, *, complete: bool = False) -> Manifest:
        """Return the manifest for the shards that are written."""
        from apr import __version__

        position, tokenizer = self.position, self.tokenizer
        rows = list(self.rows)
        documents: int | None = position.documents
        if complete and not documents:
            # Nothing says where documents end.
            documents = None
            rows = [{"name": row["name"], "tokens": row["tokens"], "sha256": row["sha256"]} for row in rows]
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": complete,
            "tokenizer_dir": str(self.options.tokenizer),
            "tokenizer_sha256": tokenizer.sha256,
            "tokenizer_identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "eos_policy": self._eos_policy(documents) if complete else None,
            "eos_token_id": tokenizer.eos_id,
            "unk_token_id": tokenizer.unk_id,
            "eos_token_count": None if tokenizer.eos_id is None else position.eos,
            "shard_count": len(rows),
            "total_tokens": sum(row["tokens"] for row in rows),
            "total_documents": documents,
            "input_format": self.files[0].format,
            "input_files": [str(file.path) for file in self.files],
            "input_bytes": sum(self._times[path][0] for path in self._all),
            "corpus_roots": [str(path) for path in self.options.sources],
            "corpus_sha256": corpus_sha256(row["sha256"] or "" for row in rows),
            "num_workers": 1,
            "elapsed_seconds": round(self._seconds_before + time.monotonic() - self.started, 3),
            "seq_length_hint": None,
            "shard_tokens": self.options.shard_tokens,
            "producer_version": f"apr {__version__}",
            "imported": {
                "format": self.files[0].format,
                "insert_eos": self.options.insert_eos,
                "inserted_eos": position.inserted,
                "files": self._origin() if complete else [],
            },
            "shards": rows,
        }
        if not complete:
            options = {"import": self._identity, "position": asdict(position)}
            manifest["progress"] = {"place": [position.file, 0, position.source], "options": options}
        return cast("Manifest", manifest)

    def _origin(self) -> list[dict[str, Any]]:
        """Return what the manifest records of each file."""
        hashes = iter(self._hashes)
        origin = []
        for file in self.files:
            facts = {"dtype": file.dtype.name, "tokens": file.count, "sha256": next(hashes)}
            origin.append({"path": str(file.path), "size": self._times[file.path][0], **facts})
            origin += [
                {"path": str(path), "size": self._times[path][0], "sha256": file_sha256(path)}
                for path in file.beside
            ]
        return origin

    def _eos_policy(self, documents: int | None) -> str | None:
        """Return where end-of-text ids stand; None for a way that encodings do not have."""
        eos, with_eos = self.position.eos, self.position.with_eos
        if eos == 0 and self.tokenizer.eos_id is not None:
            return "none"
        if documents is not None and eos == with_eos:
            return {documents: "after", documents - 1: "between"}.get(eos)
        return None

    def notes(self, manifest: Manifest) -> Iterator[str]:
        """Yield what a user should know about the files."""
        for file in self.files:
            yield from file.notes
        documents, eos = manifest.get("total_documents"), self.tokenizer.eos_token
        if self.tokenizer.eos_id is None:
            yield (
                f"{self.options.tokenizer}: no end-of-text token is configured, so it is not known where "
                "documents end; name it with --eos-token"
            )
        elif documents is None:
            yield f"no end-of-text id ({eos}) is in the files, so it is not known where documents end"
        elif not self.position.eos and documents > 1:
            yield (
                f"no end-of-text id ({eos}) is between the documents; pass --insert-eos to add one after each"
            )
        first = np.fromfile(self.options.output / self.rows[0]["name"], ID_DTYPE, _DECODED).tolist()
        yield f"the text begins with {self.tokenizer.decode(first)[:_SHOWN]!r}"


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(stream: Any, count: int, path: Path) -> bytes:  # noqa: ANN401 (an unbuffered file)
    """Read exactly so many bytes."""
    data = stream.read(count)
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            raise RefusedError(f"{path}: became shorter while it was imported", path=path)
        data += more
    return bytes(data)

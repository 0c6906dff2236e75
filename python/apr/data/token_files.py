"""Token files of other tools: which format a file has, where its ids are, and where its documents end."""

from __future__ import annotations

import csv
import gzip
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from apr.data.listing import SHARD_NAME
from apr.errors import FormatError, RefusedError, TruncatedError, UnsupportedError, UsageError
from apr.layout import IMPORTED, foreign_layout
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    # Yields the positions of ids after which documents end, in order: int64 arrays.
    Ends = Callable[[], Iterator[NDArray[np.int64]]]

IdType = Literal["uint16", "uint32", "int32", "int64"]

FORMATS: Final = {
    "nanogpt": "nanoGPT",
    "llm.c": "llm.c",
    "datatrove": "datatrove",
    "megatron": "Megatron",
    "dolma": "OLMo or Dolma",
    "npy": "NumPy",
    "raw": "raw ids",
}
"""The formats that are read, and the names of the tools that write them."""

_ENDINGS = (".bin", ".ds", ".npy")
# The files beside a .ds file.
_OF_DATATROVE = (".index", ".metadata", ".loss")
_LLMC_HEADER = 256 * 4
# The first word of the header: the version that it goes with, and the type of the ids.
_LLMC = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
_LLMC_EVALUATION = 20240522
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
# Magic, version, code of the dtype, numbers of sequences and of documents + 1.
_MEGATRON_HEADER = struct.Struct("<9sQBQQ")
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
# The first bytes of the indices that Megatron wrote before, with other options.
_MEGATRON_OLD = b"TNTIDX\x00\x00"
_NUMPY_MAGIC = b"\x93NUMPY"
# Entries of an index that are checked at a time.
_BLOCK = 1 << 16
_SAMPLE_BYTES = 16 << 10
# With fewer ids than this, 16-bit ids may look like wider ones by chance.
_MIN_IDS = 4
# `foreign_layout` needs this many bytes.
_MIN_LAYOUT = 64
# Share of a sample that must be in the vocabulary.
_MOST = 0.99
# The types of ids in files without a header, by what `foreign_layout` calls them; None is 32-bit ids.
_RAW_LAYOUTS: dict[str | None, str] = {None: "<u4", **dict(zip(IMPORTED, ("<i8", "<u2", "<i4"), strict=True))}
# Words in the names of files that are one split of a corpus.
_TRAIN, _HELD_OUT = {"train", "training"}, {"val", "valid", "validation", "test", "eval", "dev"}


@dataclass(frozen=True)
class TokenFile:
    """One file of ids, whose structure was checked."""

    path: Path
    format: str
    """A key of `FORMATS`."""
    dtype: np.dtype[Any]
    start: int
    """The byte at which the ids begin."""
    count: int
    """The number of ids."""
    ends: Ends | None = None
    """Where documents end, if the format says so."""
    beside: tuple[Path, ...] = ()
    """Files beside it that describe it."""
    notes: tuple[str, ...] = ()


def find_token_files(sources: Sequence[Path], without: Path) -> list[Path]:
    """Return the files with ids that paths stand for, sorted within a directory.

    Args:
        sources: files, directories, or a path without the endings of Megatron's two files.
        without: a directory to leave out: the output.

    Raises:
        FileNotFoundError: a path does not exist.
        RefusedError: a directory has no token files, or these are shards of this package already.
        UsageError: a file is given twice; a directory has both a training and a held-out split.
    """
    files = [file for source in sources for file in _files_of(source, without.resolve())]
    for n, file in enumerate(files):
        if file in files[:n]:
            raise UsageError(f"{file}: given twice; pass each file once", path=file)
    return files


def _files_of(source: Path, without: Path) -> list[Path]:
    if source.is_dir():
        found = []
        # Path.walk is of Python 3.12.
        for root, folders, names in os.walk(source):
            directory = Path(root)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and (directory / name).resolve() != without
            )
            # An index whose data are missing stands for them, so that they are missed.
            found += sorted(
                {
                    _data_of(directory / name)
                    for name in names
                    if not name.startswith(".") and (name.endswith(_ENDINGS) or _is_index(directory / name))
                }
            )
        if not found:
            what = recognized(source)
            hint = f"it is {what}" if what else "pass files with other names one by one"
            raise RefusedError(f"{source}: contains no token files (.bin, .ds, .npy); {hint}", path=source)
        _check_one_split(source, found)
        return found
    data = source.with_name(f"{source.name}.bin")
    if not source.exists() and data.exists() and source.with_name(f"{source.name}.idx").exists():
        return [data]
    return [_data_of(source)]


def _is_index(path: Path) -> bool:
    """Whether a file is the index of token files, by its name and, where other tools share it, its start."""
    if path.suffix == ".idx":
        with path.open("rb") as stream:
            return stream.read(len(_MEGATRON_MAGIC)) == _MEGATRON_MAGIC
    return path.name.endswith(tuple(f".ds{ending}" for ending in _OF_DATATROVE))


def _data_of(path: Path) -> Path:
    """Return the file with the ids that a file belongs to; itself for any other."""
    for ending in _OF_DATATROVE:
        if path.name.endswith(f".ds{ending}"):
            return path.with_name(path.name.removesuffix(ending))
    return path.with_suffix(".bin") if path.suffix == ".idx" else path


def _check_one_split(source: Path, files: Sequence[Path]) -> None:
    """Check that a directory does not mix what a model is trained on with what it is evaluated on."""
    words = {file: set(re.split(r"[^a-z]+", file.stem.lower())) for file in files}
    train = next((file for file in files if words[file] & _TRAIN), None)
    held_out = next((file for file in files if words[file] & _HELD_OUT), None)
    if train is not None and held_out is not None:
        raise UsageError(
            f"{source}: contains {train.name} to train on and {held_out.name} to evaluate on; pass the files "
            "instead, and import each split into a directory of its own",
            path=source,
        )


def open_token_file(path: Path, vocab_size: int, dtype: IdType | None = None) -> TokenFile:
    """Recognize a token file, and check its header and index.

    Args:
        path: the file.
        vocab_size: the size of the vocabulary, which tells 16-bit from 32-bit ids in files without a header.
        dtype: the type of the ids, for files without a header; None recognizes it.

    Raises:
        FileNotFoundError: the file, or one that belongs to it, is missing.
        FormatError: a header or an index is damaged; `path` and `offset` say where.
        TruncatedError: the file ends before its ids do.
        UnsupportedError: a format, or a type of ids, that is not read.
        RefusedError: the file has something else than ids, or `dtype` is not their type.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        head = stream.read(_LLMC_HEADER)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: not a regular file", path=path)
    if not head:
        raise FormatError(f"{path}: empty", path=path, offset=0)
    size = status.st_size
    magic = int.from_bytes(head[:4], "little")
    if magic in _LLMC:
        file = _llmc(path, head, size)
    elif magic == _LLMC_EVALUATION:
        raise UnsupportedError(
            f"{path}: an evaluation file of llm.c, whose ids are in examples; import its training files",
            path=path,
            offset=0,
        )
    elif head.startswith((_MEGATRON_MAGIC, _MEGATRON_OLD)):
        raise FormatError(f"{path}: a Megatron index; pass the .bin file beside it", path=path, offset=0)
    elif head.startswith(_NUMPY_MAGIC):
        file = _numpy(path, size)
    elif path.name.endswith(".ds"):
        file = _datatrove(path, size, vocab_size, dtype)
    elif path.name.endswith(".bin") and path.with_suffix(".idx").exists():
        file = _megatron(path, path.with_suffix(".idx"), size)
    elif path.name.endswith(".npy"):
        file = _dolma(path, size, vocab_size, dtype)
    else:
        kind = "nanogpt" if path.name.endswith(".bin") else "raw"
        item = _raw_type(path, size, vocab_size, dtype)
        if SHARD_NAME.match(path.name) and item == np.dtype("<u4"):
            raise RefusedError(
                f"{path}: a token shard already; use its directory for --dataset, or rebuild its manifest "
                f"with apr repair-manifest {path.parent}",
                path=path,
            )
        file = TokenFile(path, kind, item, 0, _whole_ids(path, size, item))
    if dtype is not None and file.dtype.newbyteorder("=") != np.dtype(dtype):
        raise UsageError(f"{path}: the ids are {file.dtype.name}; leave out --dtype {dtype}", path=path)
    if not file.count:
        raise FormatError(f"{path}: contains no ids", path=path, offset=size)
    return file


def _llmc(path: Path, head: bytes, size: int) -> TokenFile:
    if size < _LLMC_HEADER:
        raise TruncatedError(f"{path}: ends at byte {size}, within the header", path=path, offset=size)
    magic, version, count = struct.unpack_from("<Iii", head)
    expected, dtype = _LLMC[magic]
    if version != expected:
        raise UnsupportedError(
            f"{path}: version {version} of llm.c's format at byte 4, but {expected} is known",
            path=path,
            offset=4,
        )
    if count < 0:
        raise FormatError(f"{path}: {count} ids at byte 8", path=path, offset=8)
    _check_size(path, size, _LLMC_HEADER, count, np.dtype(dtype))
    return TokenFile(path, "llm.c", np.dtype(dtype), _LLMC_HEADER, count)


def _numpy(path: Path, size: int) -> TokenFile:
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"unknown version {version}")  # noqa: TRY301 (one message for all of them)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            if min(shape, default=0) < 0:
                raise ValueError(f"negative length in shape {shape}")  # noqa: TRY301
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            offset = min(stream.tell(), size)
            raise FormatError(
                f"{path}: damaged NumPy header at byte {offset}: {str(error).partition(chr(10))[0]}",
                path=path,
                offset=offset,
            ) from None
        start = stream.tell()
    _check_integers(path, dtype, start)
    if fortran and len(shape) > 1:
        raise UnsupportedError(
            f"{path}: an array in Fortran order; save it with numpy.ascontiguousarray",
            path=path,
            offset=start,
        )
    count = 1
    for length in shape:
        count *= length
    _check_size(path, size, start, count, dtype)
    notes = () if len(shape) == 1 else (f"{path}: an array of shape {shape}; its rows are joined",)
    return TokenFile(path, "npy", dtype, start, count, notes=notes)


def _datatrove(path: Path, size: int, vocab_size: int, dtype: IdType | None) -> TokenFile:
    index, metadata, loss = (path.with_name(path.name + ending) for ending in _OF_DATATROVE)
    beside = tuple(file for file in (index, metadata) if file.exists())
    ends = _check_datatrove_index(index) if index in beside else None
    last = None if ends is None else int(ends[-1])
    if metadata in beside:
        item, count = _read_datatrove_metadata(metadata)
        _check_size(path, size, 0, count, item)
    elif last is not None and last and size in (2 * last, 4 * last):
        item = np.dtype(f"<u{size // last}")
    else:
        item = _raw_type(path, size, vocab_size, dtype)
    count = _whole_ids(path, size, item)
    if last is not None and last != count:
        offset = index.stat().st_size - 8
        raise FormatError(
            f"{index}: the last document ends after id {last} (byte {offset}), but {path.name} has {count} "
            f"ids of {8 * item.itemsize} bits",
            path=index,
            offset=offset,
        )
    notes = [f"{loss}: loss masks are not imported; every token is trained on"] if loss.exists() else []

    def blocks() -> Iterator[NDArray[np.int64]]:
        assert ends is not None
        for at in range(0, len(ends), _BLOCK):
            yield ends[at : at + _BLOCK].astype(np.int64)

    known = None if ends is None else blocks
    return TokenFile(path, "datatrove", item, 0, count, known, beside, tuple(notes))


def _check_datatrove_index(index: Path) -> NDArray[np.uint64]:
    """Return the ends of documents: uint64, mapped."""
    size = index.stat().st_size
    if not size or size % 8:
        offset = size - size % 8
        raise TruncatedError(
            f"{index}: ends at byte {size}, within an entry of 8 bytes", path=index, offset=offset
        )
    ends = np.memmap(index, "<u8", "r")
    before = np.uint64(0)
    for at in range(0, len(ends), _BLOCK):
        block = np.concatenate([[before], ends[at : at + _BLOCK]])
        wrong = np.flatnonzero(block[1:] < block[:-1])
        if len(wrong):
            offset = 8 * (at + int(wrong[0]))
            raise FormatError(
                f"{index}: a document ends before it begins, at byte {offset}", path=index, offset=offset
            )
        before = block[-1]
    return ends


def _read_datatrove_metadata(path: Path) -> tuple[np.dtype[Any], int]:
    """Return the type and the number of ids.

    The lines are the tokenizer, `|` and the bytes of an id; the number of ids; the same for people. Versions
    before 0.3 wrote no bytes of an id, which were two.
    """
    content = path.read_bytes()
    lines = content.decode(errors="replace").splitlines()
    item = lines[0].rpartition("|")[2] if lines and "|" in lines[0] else "2"
    if item not in ("2", "4"):
        raise FormatError(f"{path}: {item!r} bytes of an id in line 1, not 2 or 4", path=path, offset=0)
    if len(lines) < 2 or not lines[1].isdecimal():
        offset = content.find(b"\n") + 1 or len(content)
        raise FormatError(f"{path}: line 2 is not a number of ids", path=path, offset=offset)
    return np.dtype(f"<u{item}"), int(lines[1])


def _megatron(path: Path, index: Path, size: int) -> TokenFile:
    index_size = index.stat().st_size
    with index.open("rb") as stream:
        head = stream.read(_MEGATRON_HEADER.size)
    if head.startswith(_MEGATRON_OLD):
        raise UnsupportedError(
            f"{index}: an index of Megatron's older kinds (lazy, cached); write it again as mmap",
            path=index,
            offset=0,
        )
    if not head.startswith(_MEGATRON_MAGIC):
        raise FormatError(f"{index}: not a Megatron index (MMIDIDX) at byte 0", path=index, offset=0)
    if len(head) < _MEGATRON_HEADER.size:
        raise TruncatedError(
            f"{index}: ends at byte {len(head)}, within the header", path=index, offset=len(head)
        )
    _, version, code, sequences, documents = _MEGATRON_HEADER.unpack(head)
    if version != 1:
        raise UnsupportedError(f"{index}: version {version} at byte 9, not 1", path=index, offset=9)
    if code not in _MEGATRON_TYPES:
        raise FormatError(f"{index}: unknown type of ids {code} at byte 17", path=index, offset=17)
    dtype = np.dtype(_MEGATRON_TYPES[code])
    _check_integers(index, dtype, 17)
    start = _MEGATRON_HEADER.size
    expected = start + 12 * sequences + 8 * documents
    if index_size < expected:
        raise TruncatedError(
            f"{index}: ends at byte {index_size}, but {sequences} sequences and {documents} document "
            f"boundaries (bytes 18 to 33) need {expected}",
            path=index,
            offset=index_size,
        )
    # A multimodal index has a byte more for each sequence.
    if index_size not in (expected, expected + sequences):
        raise FormatError(
            f"{index}: {index_size - expected} bytes after the last document boundary, from byte {expected}",
            path=index,
            offset=expected,
        )
    if not sequences or not documents:
        raise FormatError(f"{index}: no sequences at byte 18", path=index, offset=18)
    if index_size > expected and np.memmap(index, "i1", "r", expected).any():
        raise UnsupportedError(
            f"{index}: a multimodal index, whose ids are not all of text", path=index, offset=expected
        )
    lengths = np.memmap(index, "<i4", "r", start, (sequences,))
    pointers = np.memmap(index, "<i8", "r", start + 4 * sequences, (sequences,))
    boundaries = np.memmap(index, "<i8", "r", start + 12 * sequences, (documents,))
    count = _check_megatron_sequences(index, lengths, pointers, dtype.itemsize)
    _check_megatron_documents(index, boundaries, sequences, start + 12 * sequences)
    _check_size(path, size, 0, count, dtype)

    def blocks() -> Iterator[NDArray[np.int64]]:
        for at in range(1, documents, _BLOCK):
            block = boundaries[at : at + _BLOCK]
            # The boundary after the last sequence has no pointer.
            ends = np.asarray(pointers[np.minimum(block, sequences - 1)]) // dtype.itemsize
            yield np.where(block == sequences, count, ends).astype(np.int64)

    return TokenFile(path, "megatron", dtype, 0, count, blocks, (index,))


def _check_megatron_sequences(
    index: Path, lengths: NDArray[np.int32], pointers: NDArray[np.int64], itemsize: int
) -> int:
    """Check that sequences follow one another, and return the number of their ids."""
    first = _MEGATRON_HEADER.size
    total = 0
    for at in range(0, len(lengths), _BLOCK):
        block = np.asarray(lengths[at : at + _BLOCK], np.int64)
        if len(wrong := np.flatnonzero(block < 0)):
            offset = first + 4 * (at + int(wrong[0]))
            raise FormatError(
                f"{index}: a sequence of {block[wrong[0]]} ids at byte {offset}", path=index, offset=offset
            )
        starts = total + np.cumsum(block) - block
        if len(wrong := np.flatnonzero(starts * itemsize != pointers[at : at + _BLOCK])):
            offset = first + 4 * len(lengths) + 8 * (at + int(wrong[0]))
            raise FormatError(
                f"{index}: a sequence does not begin where the one before it ends, at byte {offset}",
                path=index,
                offset=offset,
            )
        total += int(block.sum())
    return total


def _check_megatron_documents(index: Path, boundaries: NDArray[np.int64], sequences: int, first: int) -> None:
    """Check that documents follow one another from the first sequence to the last."""
    before = 0
    for at in range(0, len(boundaries), _BLOCK):
        block = np.concatenate([[before], boundaries[at : at + _BLOCK]])
        if len(wrong := np.flatnonzero((block[1:] < block[:-1]) | (block[1:] > sequences))):
            offset = first + 8 * (at + int(wrong[0]))
            raise FormatError(
                f"{index}: a document ends at sequence {block[wrong[0] + 1]} of {sequences} (byte {offset})",
                path=index,
                offset=offset,
            )
        before = int(block[-1])
    if boundaries[0] != 0:
        raise FormatError(
            f"{index}: the first document begins at sequence {boundaries[0]}, at byte {first}",
            path=index,
            offset=first,
        )
    if before != sequences:
        offset = first + 8 * (len(boundaries) - 1)
        raise FormatError(
            f"{index}: the last document ends at sequence {before} of {sequences}, at byte {offset}",
            path=index,
            offset=offset,
        )


def _dolma(path: Path, size: int, vocab_size: int, dtype: IdType | None) -> TokenFile:
    listing = path.with_name(path.name.removesuffix(".npy") + ".csv.gz")
    if not listing.exists():
        item = _raw_type(path, size, vocab_size, dtype)
        return TokenFile(path, "dolma", item, 0, _whole_ids(path, size, item))
    last = 0
    for block in _csv_ends(listing):
        last = int(block[-1])
    # Exactly as many ids as the documents have; OLMo-core's own listings may leave out the last document.
    fits = [width for width in (2, 4) if last and size == width * last]
    item = np.dtype(f"<u{fits[0]}") if fits else _raw_type(path, size, vocab_size, dtype)
    count = _whole_ids(path, size, item)
    if last > count:
        raise TruncatedError(
            f"{path}: ends at byte {size}, after {count} ids, but {listing.name} lists {last}",
            path=path,
            offset=size,
        )

    def blocks() -> Iterator[NDArray[np.int64]]:
        yield from _csv_ends(listing)
        if last < count:
            yield np.array([count])

    return TokenFile(path, "dolma", item, 0, count, blocks, (listing,))


def _csv_ends(path: Path) -> Iterator[NDArray[np.int64]]:
    """Yield the ends of documents from lines of start, end and what the documents are."""
    ends: list[int] = []
    before = number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines):
                number += 1
                start, end = map(int, row[:2])
                if start == before <= end:
                    before = end
                    ends.append(end)
                else:
                    break
                if len(ends) == _BLOCK:
                    yield np.array(ends, np.int64)
                    ends = []
            else:
                if ends:
                    yield np.array(ends, np.int64)
                return
    except (ValueError, csv.Error):
        reason = f"line {number} does not begin with two numbers"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"damaged gzip file: {error}"
    else:
        reason = f"line {number} is a document from {start} to {end}, after one that ends at {before}"
    raise FormatError(f"{path}: {reason}", path=path)


def _raw_type(path: Path, size: int, vocab_size: int, dtype: IdType | None) -> np.dtype[Any]:
    """Return the type of the ids of a file without a header."""
    layout = foreign_layout(path)
    if layout not in _RAW_LAYOUTS:
        raise RefusedError(f"{path}: not token ids, but {layout}", path=path, offset=0)
    item, is_certain = _type_in_vocabulary(path, size, vocab_size)
    if dtype is not None:
        if is_certain and item.itemsize != np.dtype(dtype).itemsize:
            raise RefusedError(
                f"{path}: the ids look like {item.name}, not {dtype}; leave out --dtype", path=path, offset=0
            )
        return np.dtype(dtype).newbyteorder("<")
    # Ids out of range are reported with their place where they are read.
    return item if is_certain or size < _MIN_LAYOUT else np.dtype(_RAW_LAYOUTS[layout])


def _type_in_vocabulary(path: Path, size: int, vocab_size: int) -> tuple[np.dtype[Any], bool]:
    """Return the type as which most ids are in the vocabulary, the widest of several, and whether it is sure.

    32-bit ids as 64-bit ones, and 16-bit ids as 32-bit ones, are far beyond any vocabulary.
    """
    with path.open("rb") as file:
        parts = []
        for start in sorted({0, size // 2 // 8 * 8, max(0, size - _SAMPLE_BYTES) // 8 * 8}):
            file.seek(start)
            parts.append(file.read(_SAMPLE_BYTES))
    best: np.dtype[Any] = np.dtype("<u2")
    best_share = 0.0
    for item in ("<i8", "<u4", "<u2"):
        width = int(item[2])
        if size % width:
            continue
        values = np.concatenate([np.frombuffer(part[: len(part) // width * width], item) for part in parts])
        share = float(np.mean((values >= 0) & (values < vocab_size)))
        if share > best_share:
            best, best_share = np.dtype(item), share
        if share >= _MOST and len(values) >= _MIN_IDS and values.any():
            return best, True
    return best, False


def _check_integers(path: Path, dtype: np.dtype[Any], offset: int) -> None:
    if dtype.kind not in "iu":
        raise UnsupportedError(
            f"{path}: values of type {dtype.name} (byte {offset}) are not token ids", path=path, offset=offset
        )


def _whole_ids(path: Path, size: int, dtype: np.dtype[Any]) -> int:
    if size % dtype.itemsize:
        offset = size - size % dtype.itemsize
        raise TruncatedError(
            f"{path}: ends at byte {size}, within an id of {dtype.itemsize} bytes", path=path, offset=offset
        )
    return size // dtype.itemsize


def _check_size(path: Path, size: int, start: int, count: int, dtype: np.dtype[Any]) -> None:
    """Check that a file has its header and ids, and nothing else."""
    expected = start + count * dtype.itemsize
    if size < expected:
        raise TruncatedError(
            f"{path}: ends at byte {size}, but {count} ids of {dtype.itemsize} bytes need {expected}",
            path=path,
            offset=size,
        )
    if size > expected:
        raise FormatError(
            f"{path}: {size - expected} bytes after the last of {count} ids, from byte {expected}",
            path=path,
            offset=expected,
        )

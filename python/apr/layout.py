"""Files under a shard's name that contain something else: arrays of another type, headers, text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# No vocabulary has more ids; `apr._core` counts no id from here on.
MAX_ID = 1 << 22
# Bytes that are looked at, at the start, in the middle and at the end. A multiple of every item's size.
_SAMPLE_BYTES = 16 << 10
_WIDEST = 8
# Two words are not enough to tell a pattern from chance. Eight 64-bit integers are: no text has id 0 at each
# second place of eight.
_MIN_WORDS = 16
# Share of a sample that must follow a pattern: a file may have a short header or a few damaged words.
_MOST = 0.99
# First bytes of files. All of them are ids that no vocabulary has, so none is the beginning of a shard.
_MAGIC = {
    b"\x93NUMPY": "a NumPy array with a header (.npy)",
    b"PK\x03\x04": "a ZIP archive (.npz, .pt)",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"GGUF": "a GGUF file",
    b"APR": "an .apr file",
    b"MMIDIDX": "a Megatron index file",
    b"\x89HDF": "an HDF5 file",
    # 20240520 and 20240801, the first words of llm.c's token files.
    b"\x28\xd7\x34\x01": "a token file of llm.c, which has a header and 16-bit ids",
    b"\x41\xd8\x34\x01": "a token file of llm.c, which has a header and 32-bit ids",
}
# Ids of other types in files without a header, which `apr tokenize import` reads.
IMPORTED = ("64-bit integers", "16-bit integers", "32-bit integers, some of them negative")
_GZIP = b"\x1f\x8b\x08"
# Tried in this order: wide floats that are ids are often whole numbers in halves, too.
_FLOATS = {
    "64-bit floats": "<f8",
    "big-endian 64-bit floats": ">f8",
    "32-bit floats": "<f4",
    "big-endian 32-bit floats": ">f4",
}
# Fewer halves do not tell bytes without a pattern from 16-bit integers.
_MIN_HALVES = 1024
# Halves of 32 bits are compared by these many values; all larger ones count as one.
_BINS = 64


def foreign_layout(path: str | Path) -> str | None:
    """Return what a file contains if its bytes are not little-endian 32-bit ids; None if they may be.

    Only a few kilobytes are read. The pattern of the bytes decides, so ids of any vocabulary are recognized.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (also of a str)
        size = os.fstat(file.fileno()).st_size
        parts = []
        for start in sorted({0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES}):
            # So that the parts of wide items stand where they do in the file.
            file.seek(max(0, start) // _WIDEST * _WIDEST)
            parts.append(file.read(_SAMPLE_BYTES))
    for magic, name in _MAGIC.items():
        if parts[0].startswith(magic):
            return name
    # A shard is one in every part. A file of another kind may have a part that looks like one, such as zeros.
    layout = next((layout for part in parts if (layout := _layout(part)) is not None), None)
    # These first bytes alone may be the beginning of ids.
    return "compressed with gzip" if layout is not None and parts[0].startswith(_GZIP) else layout


def remedy(layout: str, directory: str) -> str:
    """Return what to do with a directory of shards of a layout."""
    if layout in IMPORTED or layout.startswith(("a NumPy array", "a token file of llm.c")):
        return f"import the ids with apr tokenize import {directory} NEW --tokenizer MODEL.apr"
    return "encode the text again, or convert the ids"


def _layout(sample: bytes) -> str | None:
    sample = sample[: len(sample) // _WIDEST * _WIDEST]
    words = np.frombuffer(sample, "<u4")
    if len(words) < _MIN_WORDS or (words == words[0]).all():
        return None
    in_range = float(np.mean(words < MAX_ID))
    if _is_text(sample):
        return "text"
    for name, dtype in _FLOATS.items():
        if _are_ids(np.frombuffer(sample, dtype)):
            return name
    for name, wide in (("64-bit integers", words), ("big-endian 64-bit integers", words.byteswap()[::-1])):
        if _is_wide(wide):
            return name
    if _has_equal_halves(words) and _has_equal_halves(words.byteswap()):
        return _sixteen_bits(sample)
    if in_range >= _MOST:
        return None  # single ids out of range are reported with their place
    if np.mean(words.byteswap() < MAX_ID) >= _MOST:
        return "big-endian 32-bit integers"
    # -100 and -1 stand for places without a label.
    if np.mean(words.view("<i4") < MAX_ID) >= _MOST and in_range > 1 - _MOST:
        return "32-bit integers, some of them negative"
    return _sixteen_bits(sample)


def _is_wide(words: NDArray[np.uint32]) -> bool:
    """Whether pairs of words are 64-bit integers, the lower word first."""
    low, high = words[0::2], words[1::2]
    # A negative number has all bits set in its upper word.
    negative = high == 2**32 - 1
    return bool(
        (negative | (high == 0)).all() and (low[~negative] < MAX_ID).all() and len(np.unique(low)) > 1
    )


def _are_ids(values: NDArray[np.floating]) -> bool:
    """Whether numbers are ids: whole, and within a vocabulary."""
    with np.errstate(all="ignore"):
        return bool(np.mean((values >= 0) & (values < MAX_ID) & (values == np.floor(values))) >= _MOST)


def _is_text(sample: bytes) -> bool:
    # A sample may begin and end within a character.
    text = sample.decode("utf-8", "replace").strip("\ufffd")
    return "\ufffd" not in text and all(c.isprintable() or c in "\t\n\r\f" for c in text)


def _has_equal_halves(words: NDArray[np.uint32]) -> bool:
    """Whether words are pairs of 16-bit numbers: both halves then have the same distribution.

    The upper halves of ids are 0, or one of a few small numbers.
    """
    if len(words) < _BINS:
        return False
    lower, upper = (np.minimum(half, _BINS - 1) for half in (words & 0xFFFF, words >> 16))
    a, b = (np.bincount(half, minlength=_BINS) / len(words) for half in (lower, upper))
    # Half the sum of the differences of two samples of one distribution; those of ids differ by 0.8.
    return bool(np.abs(a - b).sum() / 2 < 0.1 + 0.5 * np.sqrt(_BINS / len(words)))


def _sixteen_bits(sample: bytes) -> str:
    """Return the name of numbers of 16 bits, or of bytes without any pattern."""
    halves = np.frombuffer(sample, "<u2")
    if _are_ids(halves.view("<f2")):
        return "16-bit floats (float16)"
    # bfloat16 is the upper half of a float32.
    if _are_ids((halves.astype("<u4") << 16).view("<f4")):
        return "16-bit floats (bfloat16)"
    first, second = (_entropy(np.frombuffer(sample, np.uint8)[at::2]) for at in (0, 1))
    # 8 bits, within the error of a sample: no numbers have bytes like that.
    if len(halves) >= _MIN_HALVES and min(first, second) > 8 - 2 * 256 / len(halves):
        return "bytes without a pattern (compressed or encrypted)"
    # The upper byte of an id has fewer values than the lower one.
    return "16-bit integers" if second <= first else "big-endian 16-bit integers"


def _entropy(values: NDArray[np.uint8]) -> float:
    """Return the entropy of bytes, in bits."""
    p = np.bincount(values, minlength=256) / len(values)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())

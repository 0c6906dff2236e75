"""Files with one wrong field each, and unusual files that are valid."""

import struct

from tests.container.forged import Entry, forge

HUGE = 1 << 62


GOOD = forge(Entry(b"a"), Entry(b"b"))


def pickled():
    import pickle

    return pickle.dumps({"w": [1.0]}, protocol=2)


def zipped():
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickled())
    return buffer.getvalue()


SAFETENSORS = struct.pack("<Q", 2) + b"{}"


WRONG_HEADER_CRC = bytes(GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:])


# id: (bytes, error, tensor, byte, a key word of the message)
CASES = {
    "empty": (b"", "TruncatedError", None, 0, "byte 0"),
    "three bytes": (b"abc", "FormatError", None, 0, "format"),
    "three bytes of the magic": (GOOD[:3], "TruncatedError", None, 3, "magic"),
    "half a header": (GOOD[:32], "TruncatedError", None, 32, "header"),
    "gguf": (b"GGUF" + bytes(100), "UnsupportedError", None, 0, "GGUF"),
    "safetensors": (SAFETENSORS, "UnsupportedError", None, 0, "safetensors"),
    "zip": (zipped(), "UnsupportedError", None, 0, "zip"),
    "pickle": (pickled(), "UnsupportedError", None, 0, "pickle"),
    "zeros": (bytes(100), "UnsupportedError", None, 0, "null bytes"),
    "bundle": (b"APBUNDLE" + bytes(100), "UnsupportedError", None, 0, "bundle"),
    "header checksum": (WRONG_HEADER_CRC, "ChecksumError", None, 40, "checksum"),
    "version 3": (forge(version=(3, 0)), "UnsupportedError", None, 4, "3.0"),
    "version 1": (forge(version=(1, 9)), "UnsupportedError", None, 4, "1.9"),
    "column-major": (forge(flags=1 << 11), "FormatError", None, 6, "LAYOUT_COLUMN_MAJOR"),
    "encrypted": (forge(flags=1 << 2), "UnsupportedError", None, 6, "ENCRYPTED"),
    "signed": (forge(flags=1 << 3), "UnsupportedError", None, 6, "SIGNED"),
    "compressed body": (
        forge(flags=1, metadata=b"\4\0\0\0"),
        "UnsupportedError",
        None,
        6,
        "LZ4_COMPRESSED",
    ),
    "compressed body, zstd": (
        forge(flags=2, metadata=b"\x28\xb5\x2f\xfd"),
        "UnsupportedError",
        None,
        6,
        "ZSTD_COMPRESSED",
    ),
    "metadata inside the header": (forge(metadata_offset=32), "FormatError", None, 12, "metadata_offset"),
    "metadata beyond any file": (
        forge(metadata_offset=(1 << 64) - 1),
        "FormatError",
        None,
        24,
        "18446744073709551615",
    ),
    "metadata past the end": (
        forge(metadata_size=1 << 20, tensor_index_offset=1 << 21, data_offset=1 << 21),
        "TruncatedError",
        None,
        132,
        "metadata",
    ),
    "no metadata": (forge(metadata_size=0), "FormatError", None, 20, "metadata_size"),
    "too much metadata": (forge(metadata_size=(64 << 20) + 1), "FormatError", None, 20, "64 MiB"),
    "index inside the metadata": (forge(tensor_index_offset=65), "FormatError", None, 24, "index"),
    "index past the end": (
        forge(tensor_index_offset=HUGE, data_offset=HUGE),
        "TruncatedError",
        None,
        132,
        "index",
    ),
    "data before the index": (forge(data_offset=64), "FormatError", None, 32, "index"),
    "data misaligned": (forge(data_offset=129), "FormatError", None, 32, "64"),
    "data beyond any file": (forge(data_offset=HUGE), "TruncatedError", None, 132, "index"),
    "more tensors than bytes": (forge(tensor_count=1 << 31), "FormatError", None, 8, "tensor_count"),
    "one tensor more than entries": (
        forge(Entry(), tensor_count=2),
        "FormatError",
        None,
        157,
        "name",
    ),
    "one tensor less than entries": (
        forge(Entry(b"a"), Entry(b"b"), tensor_count=1),
        "FormatError",
        None,
        260,
        "footer",
    ),
    "metadata an array": (forge(metadata=b"[1]"), "FormatError", None, 64, "object"),
    "metadata a null": (forge(metadata=b"null"), "FormatError", None, 64, "object"),
    "metadata blank": (forge(metadata=b"  "), "FormatError", None, 65, "EOF"),
    "metadata after a byte order mark": (
        forge(metadata=b"\xef\xbb\xbf{}"),
        "FormatError",
        None,
        64,
        "object",
    ),
    "metadata two objects": (forge(metadata=b"{}{}"), "FormatError", None, 66, "trailing"),
    "metadata and a NUL": (forge(metadata=b"{}\0"), "FormatError", None, 66, "trailing"),
    "metadata key no string": (forge(metadata=b"{1:2}"), "FormatError", None, 65, "key"),
    "metadata cut off": (forge(metadata=b'{"a":'), "FormatError", None, 68, "EOF"),
    "metadata NaN": (forge(metadata=b'{"a":NaN}'), "FormatError", None, 69, "value"),
    "metadata Infinity": (forge(metadata=b'{"a":-Infinity}'), "FormatError", None, 70, "number"),
    "metadata number too large": (forge(metadata=b'{"a":1e999}'), "FormatError", None, 73, "range"),
    "metadata number with a zero before": (
        forge(metadata=b'{"a":01}'),
        "FormatError",
        None,
        70,
        "number",
    ),
    "metadata lone surrogate": (
        forge(metadata=b'{"a":"\\ud800"}'),
        "FormatError",
        None,
        76,
        "escape",
    ),
    "metadata line break in a string": (
        forge(metadata=b'{"a":"\n"}'),
        "FormatError",
        None,
        71,
        "control",
    ),
    "metadata not UTF-8": (forge(metadata=b'{"\xff":1}'), "FormatError", None, 66, "UTF-8"),
    "metadata nested too deep": (
        forge(metadata=b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        "FormatError",
        None,
        133,
        "nested",
    ),
    "metadata with too many values": (
        forge(metadata=b'{"a":[' + b"0," * 1_999_998 + b"0]}"),
        "FormatError",
        None,
        4_000_065,
        "values",
    ),
    "unsorted": (forge(Entry(b"b"), Entry(b"a")), "FormatError", "a", 157, "after"),
    "unsorted, one the start of the other": (
        forge(Entry(b"aa"), Entry(b"a")),
        "FormatError",
        "a",
        158,
        "after",
    ),
    "sorted as UTF-16": (
        forge(Entry("\U0001f600".encode()), Entry("\uff21".encode())),
        "FormatError",
        "\uff21",
        160,
        "after",
    ),
    "duplicate": (forge(Entry(b"a"), Entry(b"a")), "FormatError", "a", 157, "twice"),
    "empty name": (forge(Entry(b"")), "FormatError", None, 128, "name"),
    "name not UTF-8": (forge(Entry(b"\xff")), "FormatError", None, 128, "UTF-8"),
    "name overlong UTF-8": (forge(Entry(b"\xc0\x80")), "FormatError", None, 128, "UTF-8"),
    "name a surrogate": (forge(Entry(b"\xed\xa0\x80")), "FormatError", None, 128, "UTF-8"),
    "name with a NUL": (forge(Entry(b"a\0b")), "FormatError", None, 128, "NUL"),
    "name too long": (forge(Entry(b"a" * 257)), "FormatError", None, 128, "256"),
    "name runs out of the index": (
        forge(Entry(b"a", name_size=200)),
        "FormatError",
        None,
        128,
        "192",
    ),
    "unknown dtype": (forge(Entry(dtype=29)), "FormatError", "a", 131, "29"),
    "dtype of GGML": (forge(Entry(dtype=10)), "FormatError", "a", 131, "10"),
    "dtype 255": (forge(Entry(dtype=255)), "FormatError", "a", 131, "255"),
    "name for a terminal": (
        forge(Entry(b"a\n\x1b[31m", dtype=77)),
        "FormatError",
        "a\n\x1b[31m",
        137,
        "\"a\\n\\u{1b}[31m\"",
    ),
    "nine dims": (forge(Entry(dims=(1,) * 9)), "FormatError", "a", 132, "9"),
    "more dims than there are": (
        forge(Entry(ndim=8)),
        "FormatError",
        None,
        128,
        "192",
    ),
    "dims overflow": (forge(Entry(dims=(HUGE, 8), size=0)), "FormatError", "a", 133, "range"),
    "dims overflow beside a zero": (
        forge(Entry(dims=(0, HUGE), size=0)),
        "FormatError",
        "a",
        133,
        "range",
    ),
    "dims beyond memory": (forge(Entry(dims=(1 << 60,), size=0)), "FormatError", "a", 133, "range"),
    "size against dims": (forge(Entry(size=20)), "FormatError", "a", 149, "16 bytes"),
    "size one byte less": (forge(Entry(size=15)), "FormatError", "a", 149, "16 bytes"),
    "size largest": (forge(Entry(size=(1 << 64) - 1)), "FormatError", "a", 149, "16 bytes"),
    "q4 without its last block": (
        forge(Entry(dtype=128, dims=(33,), size=18)),
        "FormatError",
        "a",
        149,
        "36 bytes",
    ),
    "q8 without its scale": (
        forge(Entry(dtype=129, dims=(33,), size=33)),
        "FormatError",
        "a",
        149,
        "37 bytes",
    ),
    "q4_k neither padded nor flat": (
        forge(Entry(dtype=12, dims=(2, 300), size=144 * 5)),
        "FormatError",
        "a",
        157,
        "576 bytes",
    ),
    "q6_k padded at rank 3": (
        forge(Entry(dtype=14, dims=(3, 2, 300), size=210 * 12)),
        "FormatError",
        "a",
        165,
        "1680 bytes",
    ),
    "empty under a shape": (forge(Entry(size=0)), "FormatError", "a", 149, "16 bytes"),
    "empty embedding": (
        forge(Entry(b"model.embed_tokens.weight", size=0)),
        "FormatError",
        "model.embed_tokens.weight",
        173,
        "16 bytes",
    ),
    "misaligned": (forge(Entry(offset=32)), "FormatError", "a", 141, "64"),
    "offset overflow": (forge(Entry(offset=(1 << 64) - 64)), "FormatError", "a", 141, "range"),
    "past the end": (forge(Entry(offset=1 << 30)), "TruncatedError", "a", 196, "\"a\""),
    "padding of the last tensor missing": (
        forge(Entry(), body=bytes(16)),
        "TruncatedError",
        "a",
        212,
        "256",
    ),
    "overlap": (
        forge(Entry(b"a", dims=(20,)), Entry(b"b", offset=64)),
        "FormatError",
        "b",
        256,
        "overlap",
    ),
    "the same place": (
        forge(Entry(b"a"), Entry(b"b", offset=0)),
        "FormatError",
        "b",
        192,
        "overlap",
    ),
    "bytes after the footer": (GOOD + b"x", "FormatError", None, len(GOOD), "footer"),
    "half a footer": (GOOD[:-2], "TruncatedError", None, len(GOOD) - 2, "footer"),
    "footer": (
        GOOD + bytes(64),
        "FormatError",
        None,
        len(GOOD),
        "footer",
    ),
}  # fmt: skip


# Lies of the metadata themselves, not of where they are: opening does not look at those.
OF_METADATA = {
    "metadata an array",
    "metadata a null",
    "metadata blank",
    "metadata after a byte order mark",
    "metadata two objects",
    "metadata and a NUL",
    "metadata key no string",
    "metadata cut off",
    "metadata NaN",
    "metadata Infinity",
    "metadata number too large",
    "metadata number with a zero before",
    "metadata lone surrogate",
    "metadata line break in a string",
    "metadata not UTF-8",
    "metadata nested too deep",
    "metadata with too many values",
}


HEAD, EMBEDDING = b"lm_head.weight", b"model.embed_tokens.weight"


# What a reader must take, odd as it looks: (bytes, names in index order)
LEGAL = {
    "a higher minor version": (forge(Entry(), version=(2, 255)), ["a"]),
    "unknown flags": (forge(Entry(), flags=0xF000), ["a"]),
    "no row-major flag": (forge(Entry(), flags=0), ["a"]),
    "LZ4 flag over plain data": (forge(Entry(), flags=1), ["a"]),
    "zstd flag over plain data": (forge(Entry(), flags=2), ["a"]),
    "reserved bytes": (forge(Entry(), reserved=b"\xff" * 20), ["a"]),
    "no tensors": (forge(), []),
    "no footer": (GOOD[:-4], ["a", "b"]),
    "white space around the metadata": (forge(Entry(), metadata=b" \r\n\t{} "), ["a"]),
    "metadata nested 64 deep": (forge(metadata=b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"), []),
    "a name of 256 bytes": (forge(Entry(b"n" * 256)), ["n" * 256]),
    "a name for a terminal": (forge(Entry(b"a\n\x1b[31m")), ["a\n\x1b[31m"]),
    "eight dims": (forge(Entry(dims=(1,) * 8)), ["a"]),
    "a scalar": (forge(Entry(dims=())), ["a"]),
    "no values": (forge(Entry(dims=(0, 5))), ["a"]),
    "the old id of bf16": (forge(Entry(dtype=2, size=8)), ["a"]),
    "the old id of q4": (forge(Entry(dtype=8, size=18)), ["a"]),
    "the old id of q8": (forge(Entry(dtype=9, size=8)), ["a"]),
    "q4_k flat": (forge(Entry(dtype=12, dims=(2, 300), size=144 * 3)), ["a"]),
    "q4_k padded": (forge(Entry(dtype=12, dims=(2, 300), size=144 * 4)), ["a"]),
    "a gap before the data": (forge(Entry(offset=64)), ["a"]),
    "a gap between tensors": (forge(Entry(b"a"), Entry(b"b", offset=192)), ["a", "b"]),
    "data in another order": (
        forge(Entry(b"a", offset=64), Entry(b"b", offset=0), body=bytes(128)),
        ["a", "b"],
    ),
    "an empty tensor inside another": (
        forge(Entry(b"a", dims=(64,)), Entry(b"b", dims=(0,), offset=64)),
        ["a", "b"],
    ),
    "padding that is not zero": (forge(Entry(), body=b"\xff" * 64), ["a"]),
    "a gap between metadata and index": (
        forge(Entry(), metadata=b"{}" + b" " * 200, metadata_size=2),
        ["a"],
    ),
    "a tied head": (
        forge(Entry(HEAD, size=0), Entry(EMBEDDING)),
        ["lm_head.weight", "model.embed_tokens.weight"],
    ),
}  # fmt: skip

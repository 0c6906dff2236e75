"""What is wrong with a file is one line, a typed error with tensor and byte, and an exit code."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from forged import Entry, forge

import apr
from apr.cli import main

DATA = Path(__file__).parents[1] / "data"
HUGE = 1 << 62
GOOD = forge(Entry(b"a"), Entry(b"b"))
# With metadata of two bytes the index starts at byte 128; an entry named by one byte and of rank 1 is
# name size 128, name 130, dtype 131, ndim 132, dims 133, offset 141, size 149, next entry 157.


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

# id: (bytes, error, tensor, byte, what the line says)
CASES = {
    "empty": (b"", "TruncatedError", None, 0, "ends at byte 0"),
    "three bytes": (b"abc", "FormatError", None, 0, "no known model format"),
    "three bytes of the magic": (GOOD[:3], "TruncatedError", None, 3, "the magic"),
    "half a header": (GOOD[:32], "TruncatedError", None, 32, "the header"),
    "gguf": (b"GGUF" + bytes(100), "UnsupportedError", None, 0, "a GGUF file: apr convert"),
    "safetensors": (SAFETENSORS, "UnsupportedError", None, 0, "a safetensors file"),
    "zip": (zipped(), "UnsupportedError", None, 0, "a zip archive"),
    "pickle": (pickled(), "UnsupportedError", None, 0, "a Python pickle"),
    "zeros": (bytes(100), "UnsupportedError", None, 0, "zero bytes"),
    "bundle": (b"APBUNDLE" + bytes(100), "UnsupportedError", None, 0, "bundle"),
    "whisper": (b"APR1\1\0" + bytes(100), "UnsupportedError", None, 0, "whisper"),
    "header checksum": (WRONG_HEADER_CRC, "ChecksumError", None, 40, "header checksum"),
    "version 3": (forge(version=(3, 0)), "UnsupportedError", None, 4, "version 3.0"),
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
    "metadata inside the header": (forge(metadata_offset=32), "FormatError", None, 12, "metadata_offset 32"),
    "no metadata": (forge(metadata_size=0), "FormatError", None, 20, "metadata_size is 0"),
    "too much metadata": (forge(metadata_size=(64 << 20) + 1), "FormatError", None, 20, "64 MiB"),
    "index inside the metadata": (forge(tensor_index_offset=65), "FormatError", None, 24, "before the end"),
    "data before the index": (forge(data_offset=64), "FormatError", None, 32, "before the tensor index"),
    "data misaligned": (forge(data_offset=129), "FormatError", None, 32, "no multiple of 64"),
    "data beyond any file": (forge(data_offset=HUGE), "TruncatedError", None, 132, "the tensor index"),
    "more tensors than bytes": (forge(tensor_count=1 << 31), "FormatError", None, 8, "tensor_count 2147"),
    "metadata an array": (forge(metadata=b"[1]"), "FormatError", None, 64, "not a JSON object"),
    "metadata cut off": (forge(metadata=b'{"a":'), "FormatError", None, 68, "EOF"),
    "metadata NaN": (forge(metadata=b'{"a":NaN}'), "FormatError", None, 69, "expected value"),
    "metadata not UTF-8": (forge(metadata=b'{"\xff":1}'), "FormatError", None, 66, "not UTF-8"),
    "metadata nested too deep": (
        forge(metadata=b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        "FormatError",
        None,
        133,
        "nested deeper than 64",
    ),
    "unsorted": (forge(Entry(b"b"), Entry(b"a")), "FormatError", "a", 157, "comes after \"b\""),
    "duplicate": (forge(Entry(b"a"), Entry(b"a")), "FormatError", "a", 157, "repeats \"a\""),
    "empty name": (forge(Entry(b"")), "FormatError", None, 128, "the name is empty"),
    "name not UTF-8": (forge(Entry(b"\xff")), "FormatError", None, 128, "not UTF-8"),
    "name with a NUL": (forge(Entry(b"a\0b")), "FormatError", None, 128, "NUL"),
    "name too long": (forge(Entry(b"a" * 257)), "FormatError", None, 128, "longer than 256"),
    "name runs out of the index": (
        forge(Entry(b"a", name_size=200)),
        "FormatError",
        None,
        128,
        "does not fit before byte 192",
    ),
    "unknown dtype": (forge(Entry(dtype=29)), "FormatError", "a", 131, "unknown dtype id 29"),
    "nine dims": (forge(Entry(dims=(1,) * 9)), "FormatError", "a", 132, "9 dimensions"),
    "dims overflow": (forge(Entry(dims=(HUGE, 8), size=0)), "FormatError", "a", 133, "out of range"),
    "size against dims": (forge(Entry(size=20)), "FormatError", "a", 149, "takes 16 bytes"),
    "empty under a shape": (forge(Entry(size=0)), "FormatError", "a", 149, "takes 16 bytes"),
    "misaligned": (forge(Entry(offset=32)), "FormatError", "a", 141, "no multiple of 64"),
    "offset overflow": (forge(Entry(offset=(1 << 64) - 64)), "FormatError", "a", 141, "out of range"),
    "past the end": (forge(Entry(offset=1 << 30)), "TruncatedError", "a", 196, "tensor \"a\""),
    "overlap": (
        forge(Entry(b"a", dims=(20,)), Entry(b"b", offset=64)),
        "FormatError",
        "b",
        256,
        "overlaps tensor \"a\"",
    ),
    "bytes after the footer": (GOOD + b"x", "FormatError", None, len(GOOD), "1 bytes after the footer"),
    "half a footer": (GOOD[:-2], "TruncatedError", None, len(GOOD) - 2, "the footer"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loading_raises_a_typed_error_that_names_tensor_and_byte(case, tmp_path):
    content, kind, tensor, offset, says = CASES[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with pytest.raises(apr.AprError) as caught:
        apr.load(path)
    error = caught.value
    assert type(error).__name__ == kind
    assert (error.path, error.tensor, error.offset) == (str(path), tensor, offset)
    assert says in str(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_say_it_in_one_line_and_exit_4(command, case, tmp_path, capsys):
    path = tmp_path / "bad.apr"
    path.write_bytes(CASES[case][0])
    assert main([command, str(path)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert CASES[case][-1] in line


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_no_such_file_and_a_directory_exit_3(command, tmp_path, capsys):
    missing = tmp_path / "gone.apr"
    assert main([command, str(missing)]) == 3
    assert capsys.readouterr().err == f"apr {command}: error: {missing}: No such file or directory\n"
    assert main([command, str(tmp_path)]) == 3
    assert capsys.readouterr().err == f"apr {command}: error: {tmp_path}: Is a directory\n"


def test_the_operating_systems_errors_stay_its_own(tmp_path):
    for act in (apr.load, apr.verify, apr.inspect):
        with pytest.raises(FileNotFoundError) as caught:
            act(tmp_path / "gone.apr")
        assert caught.value.filename == str(tmp_path / "gone.apr")
        with pytest.raises(IsADirectoryError):
            act(tmp_path)
        with pytest.raises(OSError, match="not a regular file"):
            act("/dev/null")


def test_a_file_cut_off_anywhere_is_truncated(tmp_path):
    path = tmp_path / "cut.apr"
    without_footer = len(GOOD) - 4
    for size in set(range(len(GOOD))) - {without_footer}:
        path.write_bytes(GOOD[:size])
        with pytest.raises(apr.TruncatedError) as caught:
            apr.load(path)
        assert caught.value.offset == size
    path.write_bytes(GOOD[:without_footer])  # as some old writers left their files
    assert apr.load(path).footer is None


@pytest.mark.parametrize(
    "name",
    [
        "aprender-0.72/v1_linear_none.apr",
        *(f"aprender-0.2x/json_{v}_{c}.apr" for v in ("0.22.0", "0.24.1") for c in ("none", "lz4", "zstd")),
    ],
)
def test_honest_files_of_kinds_that_are_not_read_are_named(name, capsys):
    says = "APR v1" if "v1" in name else "JSON container"
    with pytest.raises(apr.UnsupportedError, match=says):
        apr.load(DATA / name)
    assert main(["inspect", str(DATA / name)]) == 4
    assert says in capsys.readouterr().err


def test_a_wrong_footer_opens_and_is_found(tmp_path, capsys):
    path = tmp_path / "flipped.apr"
    at = len(GOOD) - 100
    path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ 16]) + GOOD[at + 1 :])
    assert list(apr.load(path)) == ["a", "b"]
    with pytest.raises(apr.ChecksumError) as caught:
        apr.load(path, verify="full")
    assert caught.value.offset == len(GOOD) - 4
    report = apr.load(path).verify()
    assert not report.ok
    assert report.checks[-1].passed is False
    assert "FAILED" in str(report)

    assert main(["verify", str(path)]) == 5
    assert "FAILED" in capsys.readouterr().out
    assert main(["inspect", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["checksum_valid"]) == (False, False)
    assert main(["inspect", str(path)]) == 0
    assert "NOT VALID" in capsys.readouterr().out
    assert main(["inspect", "--quick", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["checksum_valid"] is None


def test_an_empty_head_without_its_embedding_is_found(tmp_path):
    path = tmp_path / "head.apr"
    path.write_bytes(forge(Entry(b"lm_head.weight", size=0)))
    with apr.load(path) as file, pytest.raises(apr.FormatError, match=r"model\.embed_tokens\.weight"):
        file["lm_head.weight"]
    assert not apr.verify(path).ok


def test_what_only_looks_odd_is_read_and_shown(tmp_path):
    path = tmp_path / "odd.apr"
    path.write_bytes(forge(Entry(), version=(2, 7), flags=1 << 10 | 1 << 14, reserved=b"\1"))
    found = apr.inspect(path)
    assert (found["version"], found["unknown_flags"], found["valid"]) == ("2.7", [14], True)
    assert str(found["reserved"]).startswith("01")


def test_of_duplicate_metadata_keys_the_last_wins(tmp_path):
    path = tmp_path / "twice.apr"
    path.write_bytes(forge(metadata=b'{"license":null,"name":"x","license":"MIT"}'))
    assert apr.load(path).metadata == {"license": "MIT", "name": "x"}


def test_forged_files_are_otherwise_good(tmp_path):
    """The base of every case above opens: each is refused for the one field that lies."""
    path = tmp_path / "good.apr"
    path.write_bytes(GOOD)
    assert apr.verify(path).ok
    assert zlib.crc32(GOOD[:-4]) == apr.load(path).footer

"""Whisper's container: what it says of itself is shown, its values are refused."""

import json
import struct

import pytest
from matrix import documented, table
from tests.container.legacy.forged_old import u32, with_crc

import apr
from apr.cli import main


def entry(name=b"encoder.conv1.weight", dims=(3, 4), offset=300, size=24, count=12, ndim=None):
    """An entry of the index, 96 bytes."""
    padded = (*dims, 0, 0, 0, 0)[:4]
    packed = struct.pack("<QQQ4IB", offset, size, count, *padded, len(dims) if ndim is None else ndim)
    return (name.ljust(48, b"\0") + packed).ljust(96, b"\0")


def forge(*entries, quantization=1, compressed=0, flags=3, count=None):
    head = struct.pack(
        "<HBBBHB", 1, 2, quantization, compressed, len(entries) if count is None else count, flags
    )
    return with_crc(b"APR1" + head + u32(*range(1, 11)) + b"".join(entries) + bytes(24))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "whisper.apr"
    path.write_bytes(forge(entry(), entry(b"decoder.bias", (7,), 324, 14, 7)))
    return path


def test_inspect_says_what_the_header_says(path, capsys):
    found = apr.inspect(path)
    assert (found["format"], found["version"], found["kind"]) == ("whisper (magic APR1)", "1", "whisper")
    assert (found["tensor_count"], found["param_count"], found["dtypes"]) == (2, 19, {"f16": 2})
    assert found["flags"] == {"has_vocab": True, "has_filterbank": True}
    sizes = list(range(1, 11))
    assert found["whisper"] == {"model": 2, "quantization": "f16", "compressed": False, "sizes": sizes}
    assert (found["checksum_valid"], found["size_bytes"]) == (None, path.stat().st_size)
    assert main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "kind 2, sizes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in printed
    assert "not read by this version" in printed


def test_other_forms_are_described_under_the_same_keys(path, tmp_path):
    apr.save({}, tmp_path / "v2.apr")
    assert apr.inspect(tmp_path / "v2.apr").keys() == apr.inspect(path).keys()
    assert apr.inspect(tmp_path / "v2.apr")["whisper"] is None


def test_tensors_are_listed(path, capsys):
    assert main(["tensors", "--json", str(path)]) == 0
    weight, bias = json.loads(capsys.readouterr().out)["tensors"]
    assert weight == {
        "name": "encoder.conv1.weight", "dtype": "f16", "shape": [3, 4], "nbytes": 24, "offset": 300,
    }  # fmt: skip
    assert bias["shape"] == [7]
    assert main(["tensors", str(path), "--filter", "decoder.*"]) == 0
    printed = capsys.readouterr().out
    assert "decoder.bias" in printed
    assert "encoder" not in printed


def test_values_are_refused_and_the_line_says_what_is_shown(path, tmp_path, capsys):
    for act in (
        apr.load,
        apr.open_v1,
        lambda path: apr.diff(path, path),
        lambda path: apr.safe_open(path, "np"),
    ):
        with pytest.raises(apr.UnsupportedError, match="apr inspect and apr tensors show") as caught:
            act(path)
        assert caught.value.offset == 0
    assert not apr.verify(path).opened
    for command in (["verify"], ["tensors", "--stats"], ["convert"]):
        target = [str(tmp_path / "out.safetensors")] if command == ["convert"] else []
        assert main([*command, str(path), *target]) == 4
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert "whisper's container" in line


def test_a_compressed_body_shows_its_header_alone(tmp_path, capsys):
    path = tmp_path / "whisper.apr"
    path.write_bytes(forge(compressed=1, count=5, quantization=3))
    found = apr.inspect(path)
    assert (found["tensor_count"], found["dtypes"], found["param_count"]) == (5, {"int4": 5}, 0)
    assert main(["tensors", str(path)]) == 4
    assert "whisper's container" in capsys.readouterr().err


# id: (bytes, error, tensor, byte, what the line says); the index starts at 52, an entry has its count at 64
CASES = {
    "header cut off": (forge()[:51], "TruncatedError", None, 51, "the header"),
    "unknown quantization": (forge(quantization=4), "FormatError", None, 7, "quantization 4"),
    "index beyond the file": (forge(count=3), "TruncatedError", None, 80, "the tensor index"),
    "empty name": (forge(entry(b"")), "FormatError", None, 52, "the name is empty"),
    "name not UTF-8": (forge(entry(b"\xff")), "FormatError", None, 52, "not UTF-8"),
    "five dims": (forge(entry(ndim=5)), "FormatError", "encoder.conv1.weight", 140, "at most 4"),
    "values against dims": (
        forge(entry(), entry(b"b", count=11)), "FormatError", "b", 212, "not the product of its dims [3, 4]",
    ),
}  # fmt: skip
PARTS = {51: "header", 7: "header"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["inspect", "tensors"])
def test_what_lies_is_one_line_with_its_byte(case, command, tmp_path, capsys):
    content, kind, tensor, offset, says = CASES[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with pytest.raises(apr.AprError) as caught:
        apr.inspect(path)
    error = caught.value
    assert (type(error).__name__, error.tensor, error.offset) == (kind, tensor, offset)
    assert main([command, str(path)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert says in line


def test_the_documentation_lists_every_lie():
    lies = [
        (PARTS.get(offset, "tensor index"), kind, case, offset)
        for case, (_, kind, _, offset, _) in CASES.items()
    ]
    assert documented("Whisper's container") == table(lies, ["header", "tensor index"])

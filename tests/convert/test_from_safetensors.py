"""Safetensors files are read bit for bit in constant memory; invalid ones are refused."""

import json
import shutil
import struct

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from tests.convert.memory import memory_of_conversions
from tests.convert.models import (
    IMPORTED,
    sharded,
)

import apr
from apr.cli import main
from apr.convert import convert
from apr.errors import FormatError


def forge(entries, values=b"", texts=None):
    text = json.dumps(({"__metadata__": texts} if texts is not None else {}) | entries).encode()
    return struct.pack("<Q", len(text)) + text + values


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


BAD = {
    "a length beyond the file": (struct.pack("<Q", 999) + b"{}", "999 bytes"),
    "no JSON": (struct.pack("<Q", 3) + b"{,}", "invalid JSON"),
    "an entry that is none": (forge({"a": 3}), ": a "),
    "a negative dim": (forge({"a": F32 | {"shape": [-2]}}, bytes(8)), ": a "),
    "true as a dim": (forge({"a": F32 | {"shape": [True]}}, bytes(8)), ": a "),
    "three offsets": (forge({"a": F32 | {"data_offsets": [0, 8, 8]}}, bytes(8)), ": a "),
    "sizes that differ": (forge({"a": F32 | {"shape": [3]}}, bytes(8)), "12"),
    "a hole": (forge({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "byte 4"),
    "an overlap": (forge({"a": F32, "b": F32}, bytes(8)), "byte 0"),
    "cut off": (forge({"a": F32}, bytes(7)), "ends at byte"),
    "bytes left over": (forge({"a": F32}, bytes(9)), "ends at byte"),
    "texts that are none": (forge({"a": F32}, bytes(8), {"x": 1}), "__metadata__"),
    "an unknown dtype": (
        forge({"a": {"dtype": "C128", "shape": [2], "data_offsets": [0, 32]}}, bytes(32)),
        "C128",
    ),
    "half a byte": (
        forge({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2)),
        "F4",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_file_is_refused_in_one_line_and_leaves_nothing(case, tmp_path, capsys):
    content, says = BAD[case]
    (tmp_path / "a.safetensors").write_bytes(content)
    code = main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.apr")])
    assert code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_convert_or_raise_apr_error(tmp_path, content, as_header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + b"{" + content if as_header else content)
    try:
        convert(path, tmp_path / "b.apr")
    except apr.AprError:
        return
    assert apr.verify(tmp_path / "b.apr").ok


@pytest.mark.parametrize("megabytes", [256, pytest.param(4096, marks=pytest.mark.long)])
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "one row"])
def test_memory_does_not_grow_with_the_file(megabytes, wide, tmp_path):
    size = megabytes * 2**20
    shape = [1, size // 2] if wide else [size // 4096, 2048]
    text = json.dumps({"a": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:  # sparse
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    grown = memory_of_conversions(*(tmp_path / name for name in ("a.safetensors", "b.apr", "c.safetensors")))
    assert grown < 120_000, f"{grown} kB"
    assert (tmp_path / "c.safetensors").stat().st_size >= size


def test_a_name_of_a_megabyte_gives_a_short_message(tmp_path):
    path = tmp_path / "a.safetensors"
    text = json.dumps({"n" * (1 << 20): {"dtype": "F128", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"x")
    with pytest.raises(apr.UnsupportedError, match="F128") as caught:
        convert(path, tmp_path / "b.apr")
    assert len(str(caught.value)) < 4096


def test_several_files_are_read_by_their_index_and_must_match_it(tmp_path):
    source = tmp_path / "sharded"
    sharded(IMPORTED / "hf_qwen2_untied", source)
    index = source / "model.safetensors.index.json"
    convert(index, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        assert len(file) == 27
        assert dict(file.metadata) == {"format": "pt"}
    honest = json.loads(index.read_text())
    files = sorted(set(honest["weight_map"].values()))
    for where, says in [
        ({"ghost": files[0]}, "ghost"),
        ({"lm_head.weight": "gone.safetensors"}, "gone.safetensors"),
        (dict.fromkeys(honest["weight_map"], files[0]), f"{files[0]}"),
    ]:
        index.write_text(json.dumps(honest | {"weight_map": honest["weight_map"] | where}))
        with pytest.raises(FormatError, match=says):
            convert(source, tmp_path / "no.apr")
    index.write_text(json.dumps(honest))
    shutil.copy(source / files[0], source / files[1])
    with pytest.raises(FormatError, match="two files"):
        convert(source, tmp_path / "no.apr")
    assert not (tmp_path / "no.apr").exists()


LONE = {
    "a tensor name": forge({"\ud800": F32}, bytes(8)),
    "half of a pair": forge({"a\udc00b": F32}, bytes(8)),
    "a metadata key": forge({"a": F32}, bytes(8), {"\ud800": "x"}),
    "a metadata value": forge({"a": F32}, bytes(8), {"x": "\udfff"}),
    # Not as an escape, but as the bytes that UTF-8 would have for it.
    "bytes": forge({"a~~~": F32}, bytes(8)).replace(b"~~~", b"\xed\xa0\x80"),
}


@pytest.mark.parametrize("case", LONE)
def test_a_lone_surrogate_is_one_line_in_every_command(case, tmp_path, run):
    path = tmp_path / "a.safetensors"
    path.write_bytes(LONE[case])
    with pytest.raises(safetensors.SafetensorError):  # the package refuses them too
        safetensors.safe_open(path, "np")
    commands = [[command, path] for command in ("inspect", "tensors", "verify", "seal")]
    for command in (*commands, ["diff", path, path], ["convert", path, tmp_path / "b.apr"]):
        code, _, err = run(*command)
        assert code == 4, command
        (line,) = err.splitlines()
        assert str(path) in line
    with pytest.raises(FormatError) as caught:
        convert(path, tmp_path / "b.apr")
    assert caught.value.path == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("where", ["a tensor", "a file", "a key"])
def test_a_lone_surrogate_in_an_index_is_one_line(where, tmp_path, run):
    (tmp_path / "1.safetensors").write_bytes(forge({"a": F32}, bytes(8)))
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {
        "a tensor": {"a": "1.safetensors", "\ud800": "1.safetensors"},
        "a file": {"a": "\ud800.safetensors"},
        "a key": {"a": "1.safetensors"},
    }[where]
    index.write_text(json.dumps({"weight_map": weight_map} | ({"\ud800": 1} if where == "a key" else {})))
    for command in (["convert", index, tmp_path / "b.apr"], ["inspect", index], ["verify", index]):
        code, _, err = run(*command)
        assert code == 4, command
        (line,) = err.splitlines()
        assert "surrogate" in line


def test_an_emoji_in_two_escapes_is_no_lone_surrogate(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(forge({"\U0001f600": F32}, bytes(8), {"x": "\U0001f600"}))
    assert rb"\ud83d\ude00" in path.read_bytes()
    convert(path, tmp_path / "b.apr")
    assert list(apr.load(tmp_path / "b.apr")) == ["\U0001f600"]

"""Plain safetensors files to .apr and back, bit for bit; what is no such file."""

import json
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.convert.memory import memory_of_conversions

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert, stream

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.int8,
    torch.uint8,
]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda name: "\0" not in name and name != "__metadata__"
)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size, np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


TEXTS = st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3)


@given(st.dictionaries(NAMES, tensors(), max_size=5), TEXTS)
def test_there_and_back_are_the_packages_own_bytes(tmp_path, model, texts):
    source, middle, back = (tmp_path / name for name in ("a.safetensors", "b.apr", "c.safetensors"))
    safetensors.torch.save_file(model, source, texts or None)
    convert(source, middle)
    assert apr.verify(middle).ok
    with apr.load(middle) as file:
        assert dict(file.metadata) == texts
        for name, values in model.items():
            assert bytes(file.raw(name)) == values.reshape(-1).view(torch.uint8).numpy().tobytes()
    convert(middle, back)
    ours, theirs = (path.read_bytes() for path in (back, source))
    # The package writes its texts in an order of its own.
    assert header(ours) == header(theirs)
    assert values_of(ours) == values_of(theirs)
    if len(texts) < 2:
        assert ours == theirs


def header(content):
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def values_of(content):
    return content[8 + struct.unpack("<Q", content[:8])[0] :]


def test_what_is_longer_than_a_stretch_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_STRETCH", 25)
    model = {"a": torch.rand(31, 7), "b": torch.rand(1000).bfloat16(), "c": torch.tensor(3.0)}
    safetensors.torch.save_file(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr", ConvertOptions(dtype="f16"))
    with apr.load(tmp_path / "b.apr") as file:
        for name, values in model.items():
            assert torch.equal(file[name], values.half())
    convert(tmp_path / "b.apr", tmp_path / "c.safetensors")
    assert all(
        torch.equal(values, model[name].half())
        for name, values in safetensors.torch.load_file(tmp_path / "c.safetensors").items()
    )


def test_metadata_other_than_text_are_json_in_safetensors(tmp_path):
    apr.save({"a": np.zeros(2, "<f4")}, tmp_path / "a.apr", {"name": "x", "layers": 3, "none": None})
    convert(tmp_path / "a.apr", tmp_path / "b.safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"name": "x", "layers": "3", "none": "null"}


def test_quantised_tensors_are_dequantised(tmp_path, data):
    convert(data / "aprender-0.72" / "every_dtype.apr", tmp_path / "b.safetensors")
    found = safetensors.torch.load_file(tmp_path / "b.safetensors")
    with apr.load(data / "aprender-0.72" / "every_dtype.apr") as file:
        assert found.keys() == set(file)
        assert all(
            torch.equal(found[name].reshape(-1).view(torch.uint8), file[name].reshape(-1).view(torch.uint8))
            for name in file
        )


def forge(entries, values=b"", texts=None):
    text = json.dumps(({"__metadata__": texts} if texts is not None else {}) | entries).encode()
    return struct.pack("<Q", len(text)) + text + values


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "a length beyond the file": (struct.pack("<Q", 999) + b"{}", "would take 999 bytes"),
    "no JSON": (struct.pack("<Q", 3) + b"{,}", "no JSON"),
    "an entry that is none": (forge({"a": 3}), "a: no entry of a header: 3"),
    "a negative dim": (forge({"a": F32 | {"shape": [-2]}}, bytes(8)), "a: no entry"),
    "true as a dim": (forge({"a": F32 | {"shape": [True]}}, bytes(8)), "a: no entry"),
    "three offsets": (forge({"a": F32 | {"data_offsets": [0, 8, 8]}}, bytes(8)), "a: no entry"),
    "sizes that differ": (forge({"a": F32 | {"shape": [3]}}, bytes(8)), "8 bytes, F32 [3] takes 12"),
    "a hole": (forge({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "its bytes start at 4"),
    "an overlap": (forge({"a": F32, "b": F32}, bytes(8)), "its bytes start at 0, those before end at 8"),
    "cut off": (forge({"a": F32}, bytes(7)), "the file at"),
    "bytes left over": (forge({"a": F32}, bytes(9)), "the file at"),
    "texts that are none": (forge({"a": F32}, bytes(8), {"x": 1}), "no mapping of texts"),
    "booleans": (
        forge({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, bytes(2)),
        "a has dtype BOOL",
    ),
    "eight bits": (
        forge({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, bytes(2)),
        "F8_E4M3",
    ),
    "u32": (
        forge({"a": {"dtype": "U32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        "a has dtype U32",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_lies_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
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


def test_bf16_rounds_to_nearest_even(tmp_path):
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, np.nan, -np.inf, 1e-45, 3e38], "<f4")
    safetensors.torch.save_file({"a": torch.from_numpy(values)}, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr", ConvertOptions(dtype="bf16"))
    with apr.load(tmp_path / "b.apr") as file:
        expected = torch.from_numpy(values).bfloat16()
        assert torch.equal(file["a"].nan_to_num(7), expected.nan_to_num(7))
        assert file["a"].isnan().tolist() == [False, False, True, False, False, False]
        assert file.numpy("a").dtype == ml_dtypes.bfloat16


def test_a_tensor_under_the_name_of_the_texts_is_refused(tmp_path, capsys):
    apr.save({"__metadata__": np.zeros(2, "<f4")}, tmp_path / "a.apr", {"a": "b"})
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "b.safetensors")]) == 4
    assert "no tensor named __metadata__" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_where_there_is_no_room_the_target_is_named_and_nothing_is_left(tmp_path):
    model, place = tmp_path / "model", tmp_path / "full"
    place.mkdir()
    apr.save({"w": np.ones(50_000, np.float32)}, model.with_suffix(".apr"))
    convert(model.with_suffix(".apr"), tmp_path / "w.safetensors")
    cases = [
        (model.with_suffix(".apr"), "m.safetensors", []),
        (tmp_path / "w.safetensors", "m.apr", []),
        (tmp_path / "w.safetensors", "several", ["--max-shard-size", "9GB"]),
    ]
    code = """
import resource, sys
from apr.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["convert", *sys.argv[1:]]))
"""
    for source, target, flags in cases:
        done = subprocess.run(
            [sys.executable, "-c", code, source, target, *flags],
            capture_output=True,
            text=True,
            cwd=place,
            check=False,
        )
        assert (done.returncode, done.stdout) == (7, "")
        named = place / target if flags else target
        assert done.stderr == f"apr convert: error: {named}: File too large\n"
        assert list(place.iterdir()) == []


def test_a_name_of_a_megabyte_makes_no_line_of_a_megabyte(tmp_path):
    path = tmp_path / "a.safetensors"
    text = json.dumps({"n" * (1 << 20): {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"x")
    with pytest.raises(apr.UnsupportedError, match=r"an \.apr file holds") as caught:
        convert(path, tmp_path / "b.apr")
    assert len(str(caught.value)) < 4096

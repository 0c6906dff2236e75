"""Dtypes that the format lacks are stored as bytes and come back as they were."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import apr
import apr.numpy
import apr.torch
from apr.convert import ConvertOptions, convert

DOCS = Path(__file__).parents[2] / "docs"
# safetensors' name, torch's dtype, NumPy's dtype. A float4_e2m1fn_x2 is a pair of values.
DTYPES = {
    "BOOL": (torch.bool, np.bool_),
    "I16": (torch.int16, np.int16),
    "U16": (torch.uint16, np.uint16),
    "U32": (torch.uint32, np.uint32),
    "U64": (torch.uint64, np.uint64),
    "F8_E4M3": (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "F8_E5M2": (torch.float8_e5m2, ml_dtypes.float8_e5m2),
    "F8_E8M0": (torch.float8_e8m0fnu, ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, ml_dtypes.float8_e5m2fnuz),
    "C64": (torch.complex64, np.complex64),
    "F4": (torch.float4_e2m1fn_x2, None),
}
SHAPES = [(), (1,), (5,), (3, 4), (2, 0, 3), (1, 1, 1, 1, 1, 1, 1, 2)]


def values(dtype, shape, seed=0):
    """A torch tensor of any bits; of a bool, zeros and ones."""
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, size, np.uint8)
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(raw).view(dtype).view(shape)


def stored(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(a, b):
    return (a.dtype, a.shape, stored(a)) == (b.dtype, b.shape, stored(b))


def reader_of_the_documentation():
    """The reader in docs/format.md, which does not know these dtypes."""
    (code,) = re.findall(r"```python\n(import json\n.*?)```", (DOCS / "format.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    return names["read"]


@pytest.mark.parametrize(
    ("name", "shape"),
    # A pair of values has a dimension.
    [(name, shape) for name in DTYPES for shape in SHAPES if shape or name != "F4"],
    ids=str,
)
def test_what_safetensors_saves_comes_back_by_every_way(name, shape, tmp_path):
    dtype, numpy_dtype = DTYPES[name]
    tensor = values(dtype, shape)
    state = {"w": tensor, "other": torch.arange(3.0), "bytes": torch.arange(4, dtype=torch.uint8)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "converted.apr")
    apr.save(state, tmp_path / "saved.apr")
    apr.torch.save_file(state, tmp_path / "file.apr")
    with apr.Writer(tmp_path / "writer.apr") as writer:
        for key, value in state.items():
            writer.add(key, value)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as theirs:
        expected, listed = theirs.get_tensor("w"), theirs.get_slice("w")
        listed = listed.get_dtype(), listed.get_shape()
    assert same(expected, tensor)
    for path in sorted(tmp_path.glob("*.apr")):
        assert apr.verify(path).ok
        with apr.load(path, verify="full") as file:
            assert same(file["w"], expected)
            assert same(file.to_torch()["w"], expected)
            assert same(dict(file)["bytes"], state["bytes"])
            info = file.info("w")
            assert (info.dtype.upper(), list(info.shape), info.nbytes) == (*listed, len(stored(tensor)))
            assert bytes(file.raw("w")) == stored(tensor)
            assert file.metadata == {}
            if numpy_dtype is not None:
                assert same(file.slice("w")[...], expected)
                array = file.numpy("w")
                assert (array.dtype, array.shape) == (np.dtype(numpy_dtype), shape)
                assert array.tobytes() == file.slice("w").numpy().tobytes() == stored(tensor)
        for backend in ("mmap", "pread"):
            assert same(apr.torch.load_file(path, backend=backend)["w"], expected)
        with apr.safe_open(path, "pt") as ours:
            assert same(ours.get_tensor("w"), expected)
            assert (ours.get_slice("w").get_dtype(), ours.get_slice("w").get_shape()) == listed
        convert(path, tmp_path / "back.safetensors")
        assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
        convert(path, tmp_path / "again.apr")
        if name != "F4":
            assert apr.diff(path, tmp_path / "again.apr").same
        (tmp_path / "again.apr").unlink()
    assert same(apr.torch.load(apr.torch.save(state))["w"], expected)


@pytest.mark.parametrize("name", [name for name, (_, numpy_dtype) in DTYPES.items() if numpy_dtype])
def test_arrays_come_back_in_their_dtype_and_layout(name, tmp_path):
    array = np.frombuffer(bytes([0, 1] * 48), DTYPES[name][1]).reshape(2, -1).T
    for save in (apr.save, apr.numpy.save_file):
        save({"w": array, "scalar": array[0, 0]}, tmp_path / "m.apr")
        loaded = apr.numpy.load_file(tmp_path / "m.apr")
        assert (loaded["w"].dtype, loaded["w"].shape) == (array.dtype, array.shape)
        assert loaded["w"].tobytes() == array.tobytes()
        assert (loaded["scalar"].dtype, loaded["scalar"].shape) == (array.dtype, ())
    if array.dtype.itemsize > 1:
        apr.save({"w": array.astype(array.dtype.newbyteorder(">"))}, tmp_path / "big.apr")
        assert np.array_equal(apr.load(tmp_path / "big.apr").numpy("w"), array)


def test_slices_read_only_their_rows_of_any_dtype(tmp_path):
    for name, (dtype, _) in DTYPES.items():
        if name == "F4":
            continue
        tensor = values(dtype, (7, 6))
        apr.save({"w": tensor}, tmp_path / "m.apr")
        with apr.load(tmp_path / "m.apr") as file, apr.safe_open(tmp_path / "m.apr", "pt") as opened:
            assert same(file.slice("w")[2:5, ::2], tensor[2:5, ::2])
            assert same(file.slice("w")[-1], tensor[-1])
            assert same(opened.get_slice("w")[2:5], tensor[2:5])


def test_other_readers_see_the_bytes(tmp_path):
    state = {name: values(dtype, (2, 6)) for name, (dtype, _) in DTYPES.items()}
    apr.save(state | {"f32": torch.ones(3)}, tmp_path / "m.apr", {"k": 1})
    metadata, tensors = reader_of_the_documentation()(tmp_path / "m.apr")
    assert metadata["k"] == 1
    assert metadata["apr.dtypes"].keys() == state.keys()
    for name, tensor in state.items():
        dtype, shape, content = tensors[name]
        assert (dtype, shape) == (7, (2, 6 * tensor.itemsize))  # u8
        assert content == stored(tensor)
        assert metadata["apr.dtypes"][name]["dtype"] == name.lower()


def test_the_metadata_key_belongs_to_the_file_and_not_to_the_caller(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"w": torch.ones(2, dtype=torch.bool)}, path, {"k": 1})
    # A copy of the metadata must not mark another tensor of the same name.
    apr.save({"w": torch.ones(2, dtype=torch.uint8)}, tmp_path / "n.apr", apr.load(path).metadata)
    assert apr.load(tmp_path / "n.apr")["w"].dtype == torch.uint8
    apr.stamp(path, {"k": None, "author": "Ada"}, path)
    assert apr.load(path)["w"].dtype == torch.bool
    assert apr.load(path).metadata == {"author": "Ada"}
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", {"apr.dtypes": "{}"})
    for act in (
        lambda: convert(tmp_path / "a.safetensors", tmp_path / "b.apr"),
        lambda: apr.save({}, path, {"apr.dtypes": {}}),
        lambda: apr.Writer(path, {"apr.dtypes": {}}),
        lambda: apr.stamp(path, {"apr.dtypes": None}, path),
    ):
        with pytest.raises(ValueError, match=r"apr\.dtypes.*reserved"):
            act()


def test_two_saves_are_the_same_bytes_whatever_the_order(tmp_path):
    state = {name: values(dtype, (2, 2)) for name, (dtype, _) in DTYPES.items()}
    apr.save(state, tmp_path / "1.apr")
    apr.save(dict(reversed(state.items())), tmp_path / "2.apr")
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()


def test_a_file_of_plain_tensors_is_read_without_its_metadata(tmp_path):
    from tests.container.forged import Entry, forge

    # Damaged metadata are an error for whoever reads them, and only then.
    path = tmp_path / "m.apr"
    path.write_bytes(forge(Entry(b"w"), metadata=b"{,}"))
    assert apr.load(path).info("w").dtype == "f32"
    path.write_bytes(forge(Entry(b"w", dtype=7, size=4), metadata=b"{,}"))
    with pytest.raises(apr.FormatError, match="metadata"):
        apr.load(path).info("w")


def test_commands_show_the_true_dtypes(tmp_path, run):
    path, other = tmp_path / "m.apr", tmp_path / "n.apr"
    apr.save({"mask": np.array([True, False]), "ids": np.array([[1, 65535]], np.uint16)}, path)
    rows = json.loads(run("tensors", path, "--json", "--stats")[1])["tensors"]
    assert [(row["name"], row["dtype"], row["shape"], row["max"]) for row in rows] == [
        ("ids", "u16", [1, 2], 65535),
        ("mask", "bool", [2], 1),
    ]
    facts = json.loads(run("inspect", path, "--json")[1])
    assert (facts["dtypes"], facts["param_count"], facts["metadata"]) == ({"u16": 1, "bool": 1}, 4, {})
    assert "1 bool, 1 u16" in run("verify", path)[1]
    apr.save({"mask": np.array([True, False]), "ids": np.array([[1, 65535]], np.int32)}, other)
    code, out, _ = run("diff", path, other)
    assert (code, "dtype u16 -> i32" in out, "mask" in out) == (5, True, False)
    assert run("seal", path)[0] == 0
    assert run("verify", path)[0] == 0


def test_complex_numbers_are_compared_and_counted(tmp_path, run):
    a, b = tmp_path / "a.apr", tmp_path / "b.apr"
    apr.save({"w": np.array([1 + 1j, np.nan, 2], np.complex64)}, a)
    apr.save({"w": np.array([1 + 4j, np.nan, 2], np.complex64)}, b)
    assert apr.diff(a, a).same
    (difference,) = apr.diff(a, b).tensors
    assert (difference.differing, difference.largest) == (1, 3)
    assert apr.diff(a, b, atol=3).same
    (row,) = json.loads(run("tensors", a, "--json", "--stats")[1])["tensors"]
    assert (row["nan"], row["inf"], row["max"]) == (1, 0, None)


def test_several_files_keep_their_dtypes(tmp_path, run):
    state = {f"{name}.{n}": values(dtype, (30, 4), n) for name, (dtype, _) in DTYPES.items() for n in (0, 1)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    index = tmp_path / "several" / "model.apr.index.json"
    convert(tmp_path / "a.safetensors", index, ConvertOptions(max_shard_size=2000))
    assert apr.verify(index).ok
    assert "stored as bytes" in str(apr.verify(index))
    with apr.load(index) as file:
        assert len(file.files) > 2
        assert all(same(file[name], tensor) for name, tensor in state.items())
        assert all(same(file.to_torch()[name], tensor) for name, tensor in state.items())
    assert run("convert", index, tmp_path / "b.safetensors")[0] == 0
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_eight_bit_floats_are_converted_when_another_dtype_is_asked_for(tmp_path):
    tensor = values(torch.float8_e4m3fn, (16, 16))
    apr.save({"w": tensor, "mask": torch.ones(3, dtype=torch.bool)}, tmp_path / "m.apr")
    expected = tensor.to(torch.bfloat16)
    loaded = apr.load(tmp_path / "m.apr").to_torch(dtype=torch.bfloat16)
    assert loaded["w"].view(torch.int16).equal(expected.view(torch.int16))
    assert loaded["mask"].dtype == torch.bool
    convert(tmp_path / "m.apr", tmp_path / "n.apr", ConvertOptions(dtype="bf16"))
    with apr.load(tmp_path / "n.apr") as file:
        assert file["w"].nan_to_num(7).equal(expected.nan_to_num(7))
        assert file["mask"].dtype == torch.bool


def test_packed_values_are_not_read_by_numpy(tmp_path):
    apr.save({"w": values(torch.float4_e2m1fn_x2, (2, 3))}, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        for read in (file.numpy, lambda name: file.slice(name)[:]):
            with pytest.raises(apr.UnsupportedError, match=r"f4.*raw") as caught:
                read("w")
            assert (caught.value.path, caught.value.tensor) == (str(tmp_path / "m.apr"), "w")


@pytest.mark.parametrize(
    "value",
    [
        3,
        {"w": 3},
        {"w": {"dtype": "u16"}},
        {"w": {"dtype": "nothing", "shape": [2]}},
        {"w": {"dtype": "f32", "shape": [1]}},
        {"w": {"dtype": "u16", "shape": [3]}},
        {"w": {"dtype": "u16", "shape": [-2]}},
        {"w": {"dtype": "bool", "shape": [True]}},
        {"w": {"dtype": "f4", "shape": [7]}},
        {"w": {"dtype": "u16", "shape": [2**62, 2**62, 0]}},
        {"w": {"dtype": "bool", "shape": [1] * 9}},
    ],
    ids=str,
)
def test_a_forged_key_is_one_error_with_the_tensor(value, tmp_path, run):
    from tests.container.forged import Entry, forge

    path = tmp_path / "m.apr"
    path.write_bytes(forge(Entry(b"w", dtype=7, size=4), metadata=json.dumps({"apr.dtypes": value}).encode()))
    for act in (lambda file: file["w"], lambda file: file.info("w"), lambda file: file.to_torch()):
        with pytest.raises(apr.FormatError, match=r"apr\.dtypes") as caught:
            act(apr.load(path))
        assert caught.value.path == str(path)
    report = apr.verify(path)
    assert [check.name for check in report.checks if check.passed is False] == ["dtypes"]
    assert run("verify", path)[0] == 5
    code, _, err = run("tensors", path)
    assert (code, err.count("\n")) == (4, 1)


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 9))
def test_any_shape_comes_back(tmp_path, name, shape, seed):
    dtype, _ = DTYPES[name]
    if name == "F4" and not shape:
        return
    tensor = values(dtype, shape, seed)
    apr.save({"w": tensor}, tmp_path / "m.apr")
    assert same(apr.load(tmp_path / "m.apr")["w"], tensor)
    assert same(apr.load(tmp_path / "m.apr").to_torch()["w"], tensor)

"""Safetensors files are written with the package's own bytes, and metadata come back from them."""

import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import apr
from apr.cli import main
from apr.convert import convert

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.int16,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.complex64,
]


NAME = st.characters(exclude_categories=["Cs"])


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda name: "\0" not in name and name != "__metadata__"
)


INDEX = "model.safetensors.index.json"


TEXTS = st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size, np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


@given(st.dictionaries(NAMES, tensors(), max_size=5), TEXTS)
def test_there_and_back_gives_the_packages_own_bytes(tmp_path, model, texts):
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(NAME),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(NAME), below, max_size=3),
    max_leaves=6,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(st.dictionaries(NAMES, JSON, max_size=5))
@example({"layers": 3, "said": "3", "none": None, "null": "null", "list": [1.0, {"a": "b"}]})
def test_any_metadata_are_restored_from_safetensors(tmp_path, metadata):
    before, middle, after = (tmp_path / name for name in ("a.apr", "b.safetensors", "c.apr"))
    apr.save({"a": np.arange(3.0)}, before, metadata)
    convert(before, middle)
    convert(middle, after)
    assert apr.diff(before, after).same
    with apr.load(before) as one, apr.load(after) as two:
        assert list(one.metadata) == list(two.metadata)
    with safetensors.safe_open(middle, "np") as file:  # others read text, numbers as JSON
        stored = file.metadata() or {}
    assert {key: stored[key] for key in metadata} == {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }


def test_a_model_that_went_through_safetensors_is_still_recognized(tmp_path, data):
    convert(data / "imported-0.72" / "hf_qwen2_tied", tmp_path / "a.apr")
    convert(tmp_path / "a.apr", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.apr")
    assert main(["diff", str(tmp_path / "a.apr"), str(tmp_path / "c.apr")]) == 0
    convert(tmp_path / "c.apr", tmp_path / "hf")
    for name in ("config.json", "tokenizer.json"):
        made, source = tmp_path / "hf" / name, data / "imported-0.72" / "hf_qwen2_tied" / name
        assert json.loads(made.read_text()) == json.loads(source.read_text())


@pytest.mark.parametrize("value", ["layers", "[", "3", '{"layers": 0}'])
def test_texts_from_other_writers_stay_texts(value, tmp_path):
    texts = {"apr.json_keys": value, "layers": "3"}
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", texts)
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr")
    with apr.load(tmp_path / "b.apr") as file:
        assert dict(file.metadata) == texts
    with pytest.raises(apr.UnsupportedError, match=r"b\.apr: .*apr stamp apr\.json_keys=null"):
        convert(tmp_path / "b.apr", tmp_path / "c.safetensors")
    stamped = ["stamp", str(tmp_path / "b.apr"), "apr.json_keys=null", "-o", str(tmp_path / "d.apr")]
    assert main(stamped) == 0
    convert(tmp_path / "d.apr", tmp_path / "c.safetensors")


def test_tensors_alone_are_written_to_several_files_and_read_back(tmp_path):
    model = {f"t{n}": torch.full((100,), float(n)) for n in range(5)}
    apr.save(model, tmp_path / "a.apr", {"steps": 7})
    for name, flags in (("dir", "1000"), (f"named/{INDEX}", "1000"), (f"whole/{INDEX}", "9MB")):
        target = tmp_path / name
        arguments = [str(tmp_path / "a.apr"), str(target), "--max-shard-size", flags]
        assert main(["convert", *arguments]) == 0
        directory = target if target.suffix != ".json" else target.parent
        files = sorted(directory.glob("*.safetensors"))
        assert len(files) == (1 if flags == "9MB" else 3)
        loaded = {}
        for path in files:
            loaded |= safetensors.torch.load_file(path)
        assert loaded.keys() == model.keys()
        assert all(torch.equal(loaded[name], model[name]) for name in model)
        convert(directory / INDEX, tmp_path / "back.apr")
        assert apr.diff(tmp_path / "a.apr", tmp_path / "back.apr").same
    assert main(["convert", *arguments]) == 5  # is there
    assert main(["convert", *arguments, "--force"]) == 0


def test_quantized_tensors_are_dequantized(tmp_path, data):
    convert(data / "aprender-0.72" / "every_dtype.apr", tmp_path / "b.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "b.safetensors")
    with apr.load(data / "aprender-0.72" / "every_dtype.apr") as file:
        assert loaded.keys() == set(file)
        assert all(
            torch.equal(loaded[name].reshape(-1).view(torch.uint8), file[name].reshape(-1).view(torch.uint8))
            for name in file
        )


def test_a_tensor_named_like_the_metadata_is_refused(tmp_path, capsys):
    apr.save({"__metadata__": np.zeros(2, "<f4")}, tmp_path / "a.apr", {"a": "b"})
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "b.safetensors")]) == 4
    assert "__metadata__" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()

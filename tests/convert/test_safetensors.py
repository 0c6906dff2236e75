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
from hypothesis import example, given
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


NAME = st.characters(exclude_categories=["Cs"])
INDEX = "model.safetensors.index.json"
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
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 25)
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(NAME),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(NAME), below, max_size=3),
    max_leaves=6,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(st.dictionaries(NAMES, JSON, max_size=5))
@example({"layers": 3, "said": "3", "none": None, "null": "null", "list": [1.0, {"a": "b"}]})
def test_any_metadata_come_back_from_safetensors_as_they_were(tmp_path, metadata):
    before, middle, after = (tmp_path / name for name in ("a.apr", "b.safetensors", "c.apr"))
    apr.save({"a": np.arange(3.0)}, before, metadata)
    convert(before, middle)
    convert(middle, after)
    assert apr.diff(before, after).same
    with apr.load(before) as one, apr.load(after) as two:
        assert list(one.metadata) == list(two.metadata)
    with safetensors.safe_open(middle, "np") as file:  # others read text, numbers as JSON
        found = file.metadata() or {}
    assert {key: found[key] for key in metadata} == {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }


def test_a_model_that_went_through_safetensors_is_still_one(tmp_path, data):
    convert(data / "imported-0.72" / "hf_qwen2_tied", tmp_path / "a.apr")
    convert(tmp_path / "a.apr", tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.apr")
    assert main(["diff", str(tmp_path / "a.apr"), str(tmp_path / "c.apr")]) == 0
    convert(tmp_path / "c.apr", tmp_path / "hf")
    for name in ("config.json", "tokenizer.json"):
        made, source = tmp_path / "hf" / name, data / "imported-0.72" / "hf_qwen2_tied" / name
        assert json.loads(made.read_text()) == json.loads(source.read_text())


@pytest.mark.parametrize("said", ["layers", "[", "3", '{"layers": 0}'])
def test_texts_that_only_look_like_ours_stay_texts(said, tmp_path):
    texts = {"apr.json_keys": said, "layers": "3"}
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", texts)
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr")
    with apr.load(tmp_path / "b.apr") as file:
        assert dict(file.metadata) == texts
    with pytest.raises(apr.UnsupportedError, match=r"b\.apr: .*apr stamp apr\.json_keys=null"):
        convert(tmp_path / "b.apr", tmp_path / "c.safetensors")
    stamped = ["stamp", str(tmp_path / "b.apr"), "apr.json_keys=null", "-o", str(tmp_path / "d.apr")]
    assert main(stamped) == 0
    convert(tmp_path / "d.apr", tmp_path / "c.safetensors")


def test_tensors_alone_go_to_several_safetensors_files_and_back(tmp_path):
    model = {f"t{n}": torch.full((100,), float(n)) for n in range(5)}
    apr.save(model, tmp_path / "a.apr", {"steps": 7})
    for name, flags in (("dir", "1000"), (f"named/{INDEX}", "1000"), (f"whole/{INDEX}", "9MB")):
        target = tmp_path / name
        arguments = [str(tmp_path / "a.apr"), str(target), "--max-shard-size", flags]
        assert main(["convert", *arguments]) == 0
        directory = target if target.suffix != ".json" else target.parent
        files = sorted(directory.glob("*.safetensors"))
        assert len(files) == (1 if flags == "9MB" else 3)
        found = {}
        for path in files:
            found |= safetensors.torch.load_file(path)
        assert found.keys() == model.keys()
        assert all(torch.equal(found[name], model[name]) for name in model)
        convert(directory / INDEX, tmp_path / "back.apr")
        assert apr.diff(tmp_path / "a.apr", tmp_path / "back.apr").same
    assert main(["convert", *arguments]) == 5  # is there
    assert main(["convert", *arguments, "--force"]) == 0


def test_several_apr_files_become_one_and_one_several(tmp_path, data, capsys):
    one = tmp_path / "one.apr"
    source = data / "aprender-0.72" / "every_dtype.apr"
    assert main(["convert", str(source), str(one)]) == 0
    assert apr.diff(source, one).same
    with apr.load(source) as a, apr.load(one) as b:
        assert {name: (a.info(name).dtype, bytes(a.raw(name))) for name in a} == {
            name: (b.info(name).dtype, bytes(b.raw(name))) for name in b
        }  # quantized tensors are as they were stored
    index = tmp_path / "several" / "model.apr.index.json"
    assert main(["convert", str(one), str(index), "--max-shard-size", "500"]) == 0
    assert len(list(index.parent.glob("*.apr"))) > 2
    assert apr.diff(one, index).same
    back = tmp_path / "back.apr"
    assert main(["convert", str(index.parent), str(back)]) == 0
    assert back.read_bytes() == one.read_bytes()
    capsys.readouterr()
    shard = next(index.parent.glob("model-00002-of-*.apr"))
    assert main(["convert", str(index), str(shard)]) == 2
    assert str(shard) in capsys.readouterr().err
    assert apr.verify(index).ok


@pytest.mark.parametrize("keep", [False, True])
def test_a_dtype_is_that_of_every_number_of_the_model_but_of_no_training_state(keep, tmp_path, capsys):
    state = "__training__.optimizer.m.a"
    values = torch.linspace(-1, 1, 512).reshape(2, 256)
    tensors = {"a": values, "i": torch.arange(3), "q": apr.quantize(values, "q8"), state: values}
    apr.save(tensors, tmp_path / "a.apr", {"hf_tokenizer": {}, "tokenizer.x": 1, "y": 2})
    flags = ["--dtype", "bf16", "--no-tokenizer", *(["--keep-quantized"] if keep else [])]
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "b.apr"), *flags]) == 0
    assert "training state" in capsys.readouterr().err
    with apr.load(tmp_path / "a.apr") as a, apr.load(tmp_path / "b.apr") as b:
        assert [b.info(name).dtype for name in b] == ["f32", "bf16", "i64", "q8" if keep else "bf16"]
        assert torch.equal(b["q"].float(), a["q"] if keep else a["q"].bfloat16().float())
        assert torch.equal(b["a"], values.bfloat16())
        assert torch.equal(b[state], values)
        assert dict(b.metadata) == {"y": 2}
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "c.safetensors")]) == 0
    assert "training state" in capsys.readouterr().err


def test_of_a_payload_without_described_tensors_no_file_is_made(tmp_path, data, capsys):
    """Such a v1 file has no tensors, and would be an empty model in any other format."""
    source = data / "aprender-0.72" / "v1_kmeans.apr"
    for target in ("a.safetensors", "b.apr", "hf"):
        assert main(["convert", str(source), str(tmp_path / target)]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert str(source) in line
    assert list(tmp_path.iterdir()) == []


def test_quantized_tensors_are_dequantized(tmp_path, data):
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
    assert "__metadata__" in capsys.readouterr().err
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
    with pytest.raises(apr.UnsupportedError, match="F8_E4M3") as caught:
        convert(path, tmp_path / "b.apr")
    assert len(str(caught.value)) < 4096

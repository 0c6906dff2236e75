"""Whatever is passed as a path is used or refused in one short line; names of other formats are noticed."""

import io
import warnings

import numpy as np
import pytest
import torch

import apr
import apr.numpy
import apr.torch
from apr.convert import convert

ONE = {"a": np.ones(3)}
STATE = {"a": torch.ones(3)}


@pytest.fixture
def path(tmp_path):
    apr.save(ONE, tmp_path / "m.apr")
    return tmp_path / "m.apr"


# Every function with a path, by the path that it gets.
READS = {
    "load": apr.load,
    "open_v1": apr.open_v1,
    "inspect": apr.inspect,
    "verify": apr.verify,
    "diff": lambda path: apr.diff(path, path),
    "seal": apr.seal,
    "safe_open": lambda path: apr.safe_open(path, "pt"),
    "torch.load_file": apr.torch.load_file,
    "numpy.load_file": apr.numpy.load_file,
    "load_model": lambda path: apr.torch.load_model(torch.nn.Linear(1, 1), path),
    "convert": lambda path: convert(path, "never.apr"),
    "stamp": lambda path: apr.stamp(path, {}, "never.apr"),
}
WRITES = {
    "save": lambda path: apr.save(ONE, path),
    "Writer": apr.Writer,
    "torch.save_file": lambda path: apr.torch.save_file(STATE, path),
    "numpy.save_file": lambda path: apr.numpy.save_file(ONE, path),
    "save_model": lambda path: apr.torch.save_model(torch.nn.Linear(1, 1), path),
    "convert": lambda path: convert(__file__, path),
    "stamp": lambda path: apr.stamp(__file__, {}, path),
}
WRONG = {
    "bytes": b"x" * 100_000,
    "a bytearray": bytearray(100_000),
    "a memoryview": memoryview(bytes(100_000)),
    "a buffer": io.BytesIO(bytes(100_000)),
    "a dict": dict.fromkeys(map(str, range(1000)), 1),
    "a list": ["m.apr"] * 1000,
    "a tensor": torch.ones(1000),
    "a number": 3,
    "nothing": None,
}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("function", [*READS, *(f"to {name}" for name in WRITES)])
def test_what_is_not_a_path_is_one_short_line(function, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    act = WRITES[function[3:]] if function.startswith("to ") else READS[function]
    with pytest.raises(TypeError, match=r"must be a str or a PathLike") as caught:
        act(WRONG[value])
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
    assert type(WRONG[value]).__name__ in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_contents_of_a_file_are_sent_to_the_function_that_takes_them(path):
    with pytest.raises(TypeError, match=r"apr\.torch\.load"):
        apr.load(path.read_bytes())
    with path.open("rb") as file, pytest.raises(TypeError, match=r"apr\.torch\.load"):
        apr.load(file)
    for module in (apr.torch, apr.numpy):
        assert list(module.load(path.read_bytes())) == ["a"]
        with pytest.raises(TypeError, match="load_file"):
            module.load(str(path))


@pytest.mark.parametrize(
    ("act", "order"),
    [
        (lambda path: apr.save(path, ONE), "save(tensors, path)"),
        (lambda path: apr.save(str(path), STATE), "save(tensors, path)"),
        (lambda path: apr.torch.save_file(path, STATE), "save_file(tensors, filename)"),
        (lambda path: apr.numpy.save_file(path, ONE), "save_file(tensor_dict, filename)"),
        (lambda path: apr.torch.save_model(path, torch.nn.Linear(1, 1)), "save_model(model, filename)"),
        (lambda path: apr.torch.load_model(path, torch.nn.Linear(1, 1)), "load_model(model, filename)"),
        (lambda path: apr.stamp(path, path, {"k": 1}), "stamp(path, changes, out)"),
        (lambda path: apr.stamp({"k": 1}, path, path), "stamp(path, changes, out)"),
        (lambda path: apr.Writer({"k": 1}, path), "Writer(path, metadata)"),
    ],
)
def test_swapped_arguments_are_told(act, order, path):
    before = path.read_bytes()
    with pytest.raises(TypeError) as caught:
        act(path)
    assert order in str(caught.value)
    assert path.read_bytes() == before


def test_tensors_that_are_no_mapping_are_refused(tmp_path):
    for value in ("m.apr", [torch.ones(3)], torch.ones(3), None):
        with pytest.raises(TypeError, match="mapping"):
            apr.save(value, tmp_path / "m.apr")
    with pytest.raises(TypeError, match="state_dict"):
        apr.save(torch.nn.Linear(1, 1), tmp_path / "m.apr")


@pytest.mark.parametrize("function", WRITES)
def test_a_buffer_to_write_to_is_sent_to_the_function_that_returns_the_contents(function):
    for value in (io.BytesIO(), b"m.apr"):
        with pytest.raises(TypeError, match=r"apr\.torch\.save") as caught:
            WRITES[function](value)
        assert "torch.load" not in str(caught.value)


@pytest.mark.parametrize("function", [*READS, *(f"to {name}" for name in WRITES)])
def test_a_lone_surrogate_in_a_path_is_one_line(function):
    act = WRITES[function[3:]] if function.startswith("to ") else READS[function]
    with pytest.raises(ValueError, match="lone surrogate") as caught:
        act("\ud800.apr")
    assert not isinstance(caught.value, UnicodeError)


def test_tensors_in_place_of_a_model_are_told(path):
    for act, function in ((apr.torch.save_model, "save_file"), (apr.torch.load_model, "load_file")):
        with pytest.raises(TypeError, match=f"dict.*{function}"):
            act(dict(STATE), path)


def test_metadata_that_are_no_mapping_are_refused(path):
    for act in (apr.Writer, lambda path, metadata: apr.save(ONE, path, metadata)):
        for value in ([1], "pt", 3):
            with pytest.raises(TypeError, match="metadata must be a mapping"):
                act(path, value)


NAMES = [
    "a.apr.index.json",
    "a.safetensors.index.json",
    ".bin",
    "a.hdf5",
    "a.safetensors",
    "a.gguf",
    "a.pt",
    "a.pth",
    "a.bin",
    "A.BIN",
    "a.ckpt",
    "a.npz",
    "a.onnx",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [name for name in WRITES if name not in {"convert", "stamp"}])
def test_a_name_of_another_format_is_written_with_a_warning_at_the_callers_line(function, name, tmp_path):
    with pytest.warns(UserWarning, match=r"\.apr") as caught:
        writer = WRITES[function](tmp_path / name)
    if writer is not None:
        with writer:
            writer.add("a", np.ones(3))
    (warning,) = caught
    assert warning.filename == __file__
    assert str(tmp_path / name) in str(warning.message)
    if not name.endswith(".index.json"):  # which `load` takes for one
        assert len(apr.load(tmp_path / name)) > 0


@pytest.mark.parametrize("name", ["m.apr", "model", "checkpoint.step3", "a.safetensors.apr"])
def test_other_names_are_written_without_a_word(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in ("save", "torch.save_file", "numpy.save_file", "save_model"):
            WRITES[function](tmp_path / name)


@pytest.mark.parametrize("name", ["o.safetensors", "o.gguf", "o.bin"])
def test_commands_refuse_a_name_of_another_format(name, path, tmp_path, run):
    target = tmp_path / name
    for command in (
        ["stamp", path, "k=1", "-o", target],
        ["init", "--arch", "qwen2-4m", "--vocab-size", "10", "-o", target],
    ):
        code, _, err = run(*command)
        assert code == 2
        (line,) = err.splitlines()
        assert str(target) in line
        assert ".apr" in line
    assert not target.exists()
    with pytest.warns(UserWarning, match=r"\.apr"):
        apr.stamp(path, {"k": 1}, target)

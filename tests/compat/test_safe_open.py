"""safetensors' interface: what a script does with safetensors it does with apr after a changed import."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from tests.container.forged import Entry, forge

import apr
import apr.numpy
import apr.torch
from apr.errors import DeviceError, UnavailableError, exit_code

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int8, torch.uint8]
TENSORS = {
    **{str(dtype): BASE.to(dtype) for dtype in FLOATS + INTEGERS},
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3, dtype=torch.float16),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
}
OPEN = {safetensors: safetensors.safe_open, apr: apr.safe_open}


def tied():
    """A model whose head is its embedding."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)}
    )
    model["head"].weight = model["embed"].weight
    return model


def plain(value):
    """Equal where dtype, shape and bits are."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        return "torch", value.dtype, tuple(value.shape), data, value.requires_grad
    if isinstance(value, np.ndarray):
        return "numpy", value.dtype, value.shape, value.tobytes(), value.flags.writeable
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    return value


def both(script, tmp_path):
    """What a script gives with safetensors and with apr: a value, or the class of an error."""
    outcomes = []
    for package in (safetensors, apr):
        try:
            outcomes.append(plain(script(package, str(tmp_path / f"model.{package.__name__}"))))
        except Exception as error:  # noqa: BLE001 (whatever it is)
            outcomes.append(type(error))
    return outcomes


def save_and_load(package, path):
    package.torch.save_file(TENSORS, path, metadata={"format": "pt", "note": "ü"})
    return package.torch.load_file(path)


def save_and_load_with_pread(package, path):
    package.torch.save_file(TENSORS, path)
    return package.torch.load_file(path, device="cpu", backend="pread")


def save_and_load_bytes(package, _):
    data = package.torch.save(TENSORS, metadata={"a": "b"})
    assert isinstance(data, bytes)
    return package.torch.load(data)


def look_with_safe_open(package, path):
    package.torch.save_file(TENSORS, path, {"format": "pt"})
    with OPEN[package](path, framework="pt", device="cpu") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {
            "keys": file.keys(),
            "offset_keys": sorted(file.offset_keys()),
            "metadata": file.metadata(),
            "shapes": [part.get_shape() for part in slices.values()],
            "dtypes": [part.get_dtype() for part in slices.values()],
            "tensor": file.get_tensor("torch.bfloat16"),
            "all": file.get_tensors(),
        }


def look_with_numpy(package, path):
    package.torch.save_file(TENSORS, path)
    with OPEN[package](path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def numpy_both_ways(package, path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "big": np.arange(3, dtype=">i4"),
        "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "empty": np.ones((0, 3), np.float16),
    }
    package.numpy.save_file(arrays, path, metadata={"a": "b"})
    del arrays["bf16"]  # which safetensors.numpy.load does not know
    return {
        "file": package.numpy.load_file(path),
        "pread": package.numpy.load_file(path, backend="pread"),
        "bytes": {
            name: array.copy() for name, array in package.numpy.load(package.numpy.save(arrays)).items()
        },
    }


def no_metadata(package, path):
    package.torch.save_file({"a": BASE}, path)
    return OPEN[package](path, "pt").metadata()


def writing_to_a_tensor(package, path):
    package.torch.save_file({"a": BASE}, path)
    package.torch.load_file(path)["a"].zero_()
    return package.torch.load_file(path)


def a_model(package, path):
    package.torch.save_model(tied(), path, metadata={"format": "pt"})
    with OPEN[package](path, "pt") as file:
        header = file.metadata(), file.keys()
    other = tied()
    other["embed"].weight.data.zero_()
    missing, unexpected = package.torch.load_model(other, path, strict=True, device="cpu")
    return {"header": header, "missing": missing, "unexpected": unexpected, **other.state_dict()}


def a_model_that_lacks_names(package, path):
    package.torch.save_file({"embed.weight": torch.ones(5, 3), "more": torch.ones(1)}, path)
    other = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5)})
    missing, unexpected = package.torch.load_model(other, path, strict=False)
    return {"missing": missing, "unexpected": unexpected, "embed": other["embed"].weight}


def a_model_that_lacks_names_strictly(package, path):
    package.torch.save_file({"more": torch.ones(1)}, path)
    package.torch.load_model(tied(), path)


def a_model_of_another_layout(package, path):
    model = torch.nn.Linear(3, 4, bias=False)
    model.weight.data = torch.arange(12.0).reshape(3, 4).T
    package.torch.save_model(model, path)
    return package.torch.load_file(path)


def a_model_of_another_layout_as_it_is(package, path):
    model = torch.nn.Linear(3, 4, bias=False)
    model.weight.data = torch.arange(12.0).reshape(3, 4).T
    package.torch.save_model(model, path, force_contiguous=False)


def parts_of_one_memory_in_a_model(package, path):
    model = torch.nn.Module()
    whole = torch.arange(6.0)
    model.register_buffer("a", whole[:4])
    model.register_buffer("b", whole[2:])
    package.torch.save_model(model, path)


SCRIPTS = [
    save_and_load,
    save_and_load_with_pread,
    save_and_load_bytes,
    look_with_safe_open,
    look_with_numpy,
    numpy_both_ways,
    no_metadata,
    writing_to_a_tensor,
    a_model,
    a_model_that_lacks_names,
    a_model_of_another_layout,
    lambda package, path: (package.torch.save_file({}, path), package.torch.load_file(path)),
    lambda package, path: package.torch.save_file({"a": BASE[:2], "b": BASE[2:]}, path),
    lambda package, path: package.torch.save_file({"a": BASE[:0], "b": BASE[:0]}, path),
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_returns_the_same_with_either_import(script, tmp_path):
    theirs, ours = both(script, tmp_path)
    assert not isinstance(theirs, type)
    assert ours == theirs


REFUSED = [
    a_model_that_lacks_names_strictly,
    a_model_of_another_layout_as_it_is,
    parts_of_one_memory_in_a_model,
    lambda package, path: package.torch.save_file({"a": BASE.T}, path),
    lambda package, path: package.torch.save_file({"a": BASE, "b": BASE[1:]}, path),
    lambda package, path: package.torch.save_file({"a": [1.0]}, path),
    lambda package, path: package.torch.save_file([BASE], path),
    lambda package, path: package.torch.save_file({"a": BASE.to_sparse()}, path),
    lambda package, path: package.torch.save_file({1: BASE}, path),
    lambda package, path: package.torch.save_file({"a": BASE}, path, metadata={"a": 1}),
    lambda package, path: package.torch.save_file({"a": BASE}, path, metadata={1: "a"}),
    lambda package, path: package.torch.load_file(path),
]


@pytest.mark.parametrize("script", REFUSED)
def test_a_script_fails_the_same_with_either_import(script, tmp_path):
    theirs, ours = both(script, tmp_path)
    assert isinstance(theirs, type)
    assert ours is theirs


INDICES = [
    slice(None),
    ...,
    slice(1, 3),
    slice(-2, None),
    slice(0, 99),
    slice(None, None, -1),
    0,
    -1,
    99,
    (0, 1),
    (slice(0, 2), slice(1, 3)),
    (slice(0, 2), slice(None, None, 2)),
    (..., 0),
    (0, 0, 0),
    [0, 2],
    None,
]


@pytest.mark.parametrize("name", ["torch.float32", "torch.bfloat16", "scalar", "empty"])
@pytest.mark.parametrize("index", INDICES)
def test_slices_equal_those_of_safetensors(index, name, tmp_path):
    def script(package, path):
        package.torch.save_file(TENSORS, path)
        with OPEN[package](path, "pt") as file:
            return file.get_slice(name)[index]

    theirs, ours = both(script, tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("index", INDICES)
def test_numpy_slices_equal_those_of_safetensors_and_numpy(index, tmp_path):
    def script(package, path):
        package.torch.save_file({"a": BASE.clone()}, path)
        with OPEN[package](path, "np") as file:
            return np.ascontiguousarray(file.get_slice("a")[index])

    theirs, ours = both(script, tmp_path)
    if isinstance(theirs, type):  # many kinds of index are errors there, and are as in NumPy here
        theirs = None
        try:
            theirs = plain(np.ascontiguousarray(BASE.numpy()[index]))
        except IndexError:
            theirs = IndexError
    assert ours == theirs


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_slices_of_either_backend_are_the_same_values(backend, framework, tmp_path):
    apr.save({"a": BASE}, tmp_path / "m.apr")
    with apr.safe_open(tmp_path / "m.apr", framework, backend=backend) as file:
        assert file.get_slice("a")[1:3, ::2].tolist() == BASE[1:3, ::2].tolist()
        assert file.get_tensor("a").tolist() == BASE.tolist()


def test_quantized_tensors_are_read_as_float32(data):
    path = data / "aprender-0.72" / "qwen2_q4_q8.apr"
    plain_file = apr.load(path)
    name = next(name for name in plain_file if plain_file.info(name).dtype == "q4")
    with apr.safe_open(path, "pt") as file:
        part = file.get_slice(name)
        assert part.get_dtype() == "Q4"
        assert part.get_shape() == list(plain_file.info(name).shape)
        assert part[1:3].equal(plain_file[name][1:3])
        assert file.get_tensors()[name].equal(plain_file[name])
    assert apr.numpy.load_file(path)[name].dtype == np.float32


def test_json_metadata_are_returned_as_strings(tmp_path):
    apr.save({}, tmp_path / "m.apr", {"a": "text", "n": 3, "list": [1, "ü"], "none": None})
    texts = apr.safe_open(tmp_path / "m.apr", "pt").metadata()
    assert texts == {"a": "text", "n": "3", "list": '[1, "ü"]', "none": "null"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"framework": "tf"}, "framework 'tf'"),
        ({"framework": "pt", "device": "tpu"}, "device 'tpu'"),
        ({"framework": "np", "device": "cuda"}, "device 'cuda'"),
        ({"framework": "np", "backend": "dma"}, "backend 'dma'"),
    ],
)
def test_unknown_arguments_are_named(arguments, says, tmp_path):
    apr.save({}, tmp_path / "m.apr")
    with pytest.raises(ValueError, match=says):
        apr.safe_open(tmp_path / "m.apr", **arguments)


def test_a_missing_name_and_a_closed_file_are_errors(tmp_path):
    apr.save({"weight": BASE}, tmp_path / "m.apr")
    with apr.safe_open(tmp_path / "m.apr", "pt") as file:
        for act in (file.get_tensor, file.get_slice):
            with pytest.raises(KeyError, match=r"'weigth'.*weight"):
                act("weigth")
        tensor = file.get_tensor("weight")
    assert tensor.equal(BASE)
    with pytest.raises(ValueError, match="closed"):
        file.get_tensor("weight")


def test_invalid_bytes_are_an_error_about_bytes():
    for load in (apr.torch.load, apr.numpy.load):
        with pytest.raises(apr.UnsupportedError, match=r"^<bytes>: .*zip") as caught:
            load(b"PK\3\4" + bytes(100))
        assert caught.value.path == "<bytes>"


def test_save_returns_the_bytes_of_the_file(tmp_path):
    apr.torch.save_file(TENSORS, tmp_path / "m.apr", {"a": "b"})
    assert apr.torch.save(TENSORS, {"a": "b"}) == (tmp_path / "m.apr").read_bytes()


def test_a_file_with_both_names_of_a_tied_head_loads_strictly(tmp_path):
    model = tied()
    apr.save(model.state_dict(), tmp_path / "m.apr")
    other = tied()
    other["embed"].weight.data.zero_()
    assert apr.torch.load_model(other, tmp_path / "m.apr") == (set(), [])
    assert other["head"].weight.equal(model["head"].weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["head.weight"][0] += 1
    apr.save(state, tmp_path / "m.apr")
    with pytest.raises(RuntimeError, match=r'"head\.weight"'):
        apr.torch.load_model(other, tmp_path / "m.apr")


def test_numpy_arrays_of_any_layout_are_saved_with_their_values(tmp_path):
    value = np.arange(6.0).reshape(2, 3).T  # safetensors 0.8 writes such values in another order
    apr.numpy.save_file({"a": value}, tmp_path / "m.apr")
    assert np.array_equal(apr.numpy.load_file(tmp_path / "m.apr")["a"], value)
    with pytest.raises(TypeError, match=r"'a'.*list"):
        apr.numpy.save_file({"a": [1]}, tmp_path / "m.apr")


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0])
def test_a_script_on_a_gpu_returns_the_same_as_safetensors(device, tmp_path):
    plain_path, path = str(tmp_path / "m.safetensors"), str(tmp_path / "m.apr")
    safetensors.torch.save_file(TENSORS, plain_path)
    apr.torch.save_file(TENSORS, path)
    with (
        safetensors.safe_open(plain_path, "pt", device=device) as expected,
        apr.safe_open(path, "pt", device=device) as actual,
    ):
        for name, tensor in TENSORS.items():
            rows = (..., slice(1, 2)) if tensor.dim() else ...
            for values, same in (
                (actual.get_tensor(name), expected.get_tensor(name)),
                (actual.get_slice(name)[rows], expected.get_slice(name)[rows]),
            ):
                assert values.device == same.device == torch.device("cuda:0")
                assert plain(values.cpu()) == plain(same.cpu())
        assert {str(values.device) for values in actual.get_tensors().values()} == {"cuda:0"}
    for backend in ("mmap", "pread"):
        loaded = apr.torch.load_file(path, device, backend=backend)
        assert {name: plain(values.cpu()) for name, values in loaded.items()} == {
            name: plain(values) for name, values in safetensors.torch.load_file(plain_path).items()
        }


@pytest.mark.cuda
def test_quantized_tensors_on_a_gpu_equal_those_on_the_cpu(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"q": apr.quantize(torch.rand(70, 300), "q4"), "r": apr.quantize(BASE, "q8")}, path)
    with apr.safe_open(path, "pt") as expected, apr.safe_open(path, "pt", device="cuda") as actual:
        for name in ("q", "r"):
            assert actual.get_tensor(name).is_cuda
            assert actual.get_tensor(name).cpu().equal(expected.get_tensor(name))
            assert actual.get_slice(name)[1:3].cpu().equal(expected.get_tensor(name)[1:3])


@pytest.mark.cuda
def test_a_missing_gpu_is_a_device_error(tmp_path):
    apr.torch.save_file({"a": BASE}, tmp_path / "m.apr")
    with pytest.raises(DeviceError, match="device"):
        apr.torch.load_file(tmp_path / "m.apr", torch.cuda.device_count())


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99", 99, -1, None])
def test_a_missing_device_is_refused_at_once_in_one_line(device, tmp_path):
    apr.save({"a": torch.zeros(3)}, tmp_path / "m.apr")
    for opened in (
        lambda: apr.safe_open(tmp_path / "m.apr", "pt", device),
        lambda: apr.torch.load_file(tmp_path / "m.apr", device),
        lambda: apr.load(tmp_path / "m.apr").to_torch(device),
    ):
        with pytest.raises(ValueError, match="device") as caught:
            opened()
        assert isinstance(caught.value, UnavailableError)
        assert exit_code(caught.value) == 9


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_pread_values_do_not_change_with_the_file(framework, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.arange(4096, dtype="<f4")}, path)
    with apr.safe_open(path, framework, backend="pread") as file:
        values = file.get_tensor("a")
        with path.open("r+b") as changed:
            changed.write(bytes(path.stat().st_size))
        assert values.tolist() == list(range(4096))


def test_offset_keys_follow_the_data_and_keys_the_names(tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(forge(*(Entry(name, offset=at) for name, at in ((b"a", 64), (b"b", 128), (b"c", 0)))))
    with apr.safe_open(path, "np") as file:
        assert file.keys() == ["a", "b", "c"]
        assert file.offset_keys() == ["c", "a", "b"]


def test_loading_bytes_leaks_no_file_descriptor():
    data = apr.torch.save({"a": torch.zeros(3)})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert apr.torch.load(data)["a"].tolist() == [0, 0, 0]
    for _ in range(3):
        with pytest.raises(apr.AprError):
            apr.torch.load(data[:-9])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_a_slice_accepts_lists_and_masks_with_either_backend(backend, tmp_path):
    values = torch.arange(512.0).reshape(2, 256)
    apr.save({"a": values, "q": apr.quantize(values, "q8")}, tmp_path / "m.apr")
    for framework in ("pt", "np"):
        with apr.safe_open(tmp_path / "m.apr", framework, backend=backend) as file:
            for name in ("a", "q"):
                whole = file.get_tensor(name)
                for index in ([1, 0], whole[:, 0] > 3, (slice(None), [5, 6]), None):
                    assert (file.get_slice(name)[index] == whole[index]).all()
                with pytest.raises(IndexError):
                    file.get_slice(name)[5]


def test_an_index_of_safetensors_files_names_apr_convert(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "model.safetensors"}}')
    with pytest.raises(apr.UnsupportedError, match="apr convert"):
        apr.load(path)
    with pytest.raises(FileNotFoundError):
        apr.load(tmp_path / "gone.safetensors.index.json")


def test_tensors_of_an_encrypted_file_ask_for_the_password(data):
    path = data / "aprender-0.72" / "v1_encrypted_password.apr"
    with pytest.raises(apr.DecryptionError, match="password"):
        apr.diff(path, path)

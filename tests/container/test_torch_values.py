"""Every tensor with values is saved with them, and the others are refused by name."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import apr
import apr.numpy
import apr.torch


class Subclass(torch.Tensor):
    """A class without operations of its own, as Parameter is."""


class Function(torch.Tensor):
    """Refuses every operation of Python's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is not for this class")


class Dispatch(torch.Tensor):
    """Refuses every operation, and has memory."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is not for this class")


class Wrapper(torch.Tensor):
    """Has a tensor, and no memory."""

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype)

    def __init__(self, tensor):
        self.tensor = tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is not for this class")


def inference():
    with torch.inference_mode():
        return torch.ones(2)


# Tensors that are contiguous, so that safetensors saves them.
CONTIGUOUS = {
    "a large stride": lambda: torch.arange(10.0)[::10],
    "a stride of 0": lambda: torch.as_strided(torch.arange(4.0), (1,), (0,), 2),
    "a large stride of the last dimension": lambda: torch.arange(20.0).reshape(2, 10)[:1, ::10],
    "large strides of all dimensions": lambda: torch.as_strided(torch.arange(9.0), (1, 1, 1), (7, 5, 3), 4),
    "two bytes": lambda: torch.arange(10).bfloat16()[3::10],
    "eight bytes": lambda: torch.arange(10)[5::10],
    "one byte": lambda: torch.arange(10, dtype=torch.uint8)[5::10],
    "bool": lambda: (torch.arange(10) > 4)[5::10],
    "an expanded one": lambda: torch.ones(1).expand(1, 1, 1),
    "a row of a matrix": lambda: torch.arange(6.0).reshape(2, 3)[1],
    "no values": lambda: torch.empty(0),
    "no values of a view": lambda: torch.arange(10.0)[5:5],
    "no values and odd strides": lambda: torch.empty(0, 6)[:, ::2],
    "no values, transposed": lambda: torch.empty(3, 0).t(),
    "a scalar": lambda: torch.tensor(3.5),
    "a scalar of a view": lambda: torch.arange(10.0)[7],
    "a leaf with a gradient": lambda: torch.ones(2, requires_grad=True),
    "with a history": lambda: torch.ones(2, requires_grad=True) * 2,
    "a parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "a buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "of inference mode": inference,
    "shared memory": lambda: torch.ones(2).share_memory_(),
    "a subclass": lambda: torch.ones(2).as_subclass(Subclass),
    "a subclass of other operations": lambda: torch.arange(3.0).as_subclass(Dispatch),
}
# Those that safetensors refuses or saves wrongly, with the values that they have.
OTHERS = {
    "expanded": (lambda: torch.arange(2.0)[:, None].expand(2, 3), [[0, 0, 0], [1, 1, 1]]),
    "transposed": (lambda: torch.arange(6.0).reshape(2, 3).t(), [[0, 3], [1, 4], [2, 5]]),
    "strided": (lambda: torch.arange(9.0)[1::3], [1, 4, 7]),
    "channels last": (
        lambda: torch.arange(4.0).reshape(1, 2, 2, 1).to(memory_format=torch.channels_last),
        [[[[0], [1]], [[2], [3]]]],
    ),
    "conjugated": (lambda: torch.tensor([1 + 2j]).conj(), [1 - 2j]),
    "the imaginary part of one": (lambda: torch.tensor([1 + 2j, 3 + 4j]).conj().imag, [-2, -4]),
    "negated": (lambda: torch._neg_view(torch.arange(3.0)), [0, -1, -2]),
    "a subclass without functions": (lambda: torch.arange(3.0).as_subclass(Function), [0, 1, 2]),
    "a conjugated subclass": (lambda: torch.tensor([1 + 2j]).conj().as_subclass(Dispatch), [1 - 2j]),
}


def save_model(tensor, path):
    class Model(torch.nn.Module):
        def state_dict(self):
            return {"w": tensor}

    apr.torch.save_model(Model(), path)


def write(tensor, path):
    with apr.Writer(path) as writer:
        writer.add("w", tensor)


SAVES = {
    "save": lambda tensor, path: apr.save({"w": tensor}, path),
    "save_file": lambda tensor, path: apr.torch.save_file({"w": tensor}, path),
    "Writer": write,
    "save_model": save_model,
}


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("case", CONTIGUOUS)
def test_what_safetensors_saves_is_saved_with_the_same_values(case, save, tmp_path):
    tensor = CONTIGUOUS[case]()
    safetensors.torch.save_file({"w": tensor}, tmp_path / "a.safetensors")
    SAVES[save](tensor, tmp_path / "m.apr")
    expected, loaded = (
        safetensors.torch.load_file(tmp_path / "a.safetensors")["w"],
        apr.load(tmp_path / "m.apr")["w"],
    )
    assert (loaded.dtype, loaded.shape) == (expected.dtype, expected.shape)
    assert loaded.equal(expected)


@pytest.mark.parametrize("save", ["save", "Writer", "save_model"])
@pytest.mark.parametrize("case", OTHERS)
def test_tensors_of_any_layout_are_saved_with_their_values(case, save, tmp_path):
    make, values = OTHERS[case]
    SAVES[save](make(), tmp_path / "m.apr")
    assert apr.load(tmp_path / "m.apr").numpy("w").tolist() == values


def freed():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def cut_short():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(8)
    return tensor


def batched():
    inside = []
    torch.func.vmap(lambda row: (inside.append(row), row)[1])(torch.ones(2, 3))
    return inside[0]


REFUSED = {
    "fake": (lambda: FakeTensorMode().from_tensor(torch.ones(2)), "FakeTensor"),
    "lazy": (lambda: torch.nn.LazyLinear(3).weight, "not initialized"),
    "a lazy buffer": (lambda: torch.nn.LazyBatchNorm1d().running_mean, "not initialized"),
    "a wrapper": (lambda: Wrapper(torch.ones(2)), "Wrapper"),
    "masked": (
        lambda: torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])),
        "MaskedTensor",
    ),
    "functional": (lambda: torch._to_functional_tensor(torch.ones(2)), "values"),
    "batched": (batched, "values"),
    "meta": (lambda: torch.empty(2, device="meta"), "meta device"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
    "mkldnn": (lambda: torch.ones(2, 2).to_mkldnn(), "mkldnn"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8), "qint8"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "nested",
    ),
    "a freed storage": (freed, "values"),
    "a storage that was cut short": (cut_short, "values"),
    "a dtype of nobody": (lambda: torch.ones(2, dtype=torch.complex128), "complex128"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("case", REFUSED)
def test_other_tensors_are_refused_by_name_in_one_line(case, save, tmp_path):
    make, word = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        SAVES[save](make(), tmp_path / "m.apr")
    (line,) = str(caught.value).splitlines()
    assert "'w'" in line
    assert word in line
    assert list(tmp_path.iterdir()) == []


def test_a_state_with_something_else_is_refused_by_name(tmp_path):
    class Model(torch.nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(ValueError, match=r"_extra_state.*dict"):
        apr.torch.save_model(Model(2, 2), tmp_path / "m.apr")


def test_values_of_a_view_are_those_of_numpy(tmp_path):
    # Each tensor is one element of a larger memory, with every stride that torch accepts.
    base = torch.arange(100.0)
    state = {
        f"{start}.{stride}.{dims}": torch.as_strided(base, (1,) * dims, (stride,) * dims, start)
        for start in (0, 41)
        for stride in (0, 1, 3, 50)
        for dims in (0, 1, 2, 3)
    }
    apr.save(state, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        for name, tensor in state.items():
            assert np.array_equal(file.numpy(name), tensor.numpy()), name


@pytest.mark.parametrize("write", [apr.save, apr.numpy.save_file])
def test_a_masked_array_is_refused_by_name(write, tmp_path):
    # Its file would have the values under the mask, and no mask.
    masked = np.ma.masked_array(np.arange(3.0), [0, 1, 0])
    with pytest.raises(TypeError, match=r"'w'.*mask"):
        write({"w": masked}, tmp_path / "m.apr")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="mask"):
        apr.quantize(masked, "q8")

"""Writing the APR pair of quantized dtypes, against the ecosystem's own bytes and bounds of the error."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch._subclasses.fake_tensor import FakeTensorMode

import apr

# Up to 1,500 values: 40 blocks of q4 and a part of one. Drawing a million took most of a minute.
SHAPES = arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=40) | arrays.array_shapes(
    min_dims=3, max_dims=4, min_side=0, max_side=6
)
FLOATS = st.floats(-4e5, 4e5, width=32)


@pytest.mark.parametrize("model", ["qwen2_tied", "llama_untied"])
@pytest.mark.parametrize(("dtype", "suffix"), [("q8", "int8"), ("q4", "int4")])
def test_the_bytes_equal_those_of_the_ecosystems_importer(model, dtype, suffix, data):
    folder = data / "imported-0.72"
    with (
        apr.load(folder / f"from_safetensors_{model}.apr") as source,
        apr.load(folder / f"from_safetensors_{model}_{suffix}.apr") as imported,
    ):
        quantized = [name for name in imported if imported.info(name).dtype == dtype]
        assert len(quantized) == 16
        for name in quantized:
            assert bytes(apr.quantize(source[name], dtype).data) == bytes(imported.raw(name)), name


@given(arrays.arrays("<f4", SHAPES, elements=FLOATS), st.sampled_from(["q8", "q4"]))
def test_quantized_values_are_within_half_a_step(tmp_path, values, dtype):
    quantized = apr.quantize(values, dtype)
    apr.save({"x": quantized}, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr", verify="full") as file:
        restored = file.numpy("x")
        assert bytes(file.raw("x")) == bytes(quantized.data)
    assert restored.shape == values.shape
    flat, back = values.ravel().astype("f8"), restored.ravel().astype("f8")
    block, steps = (flat.size or 1, 127) if dtype == "q8" else (32, 7)
    for start in range(0, flat.size, block):
        scale = np.abs(flat[start : start + block]).max() / steps
        # q4: the scale is rounded to float16 (2^-11), and read as zero below its smallest normal number.
        allowed = scale * (0.5 + (7 * 2**-11 if dtype == "q4" else 1e-4))
        if dtype == "q4" and scale < 6.2e-5:
            allowed = 7 * scale
        assert (np.abs(flat - back)[start : start + block] <= allowed * (1 + 1e-6) + 1e-44).all()


def test_every_kind_of_floating_point_tensor_is_accepted():
    values = np.linspace(-1, 1, 96, dtype="<f4").reshape(3, 32)
    expected = apr.quantize(values, "q8")
    for same in (torch.from_numpy(values), torch.from_numpy(values).double(), values.astype("f8")):
        assert bytes(apr.quantize(same, "q8").data) == bytes(expected.data)
    transposed = apr.quantize(values.T, "q4")
    assert bytes(transposed.data) == bytes(apr.quantize(values.T.copy(), "q4").data)
    half = torch.from_numpy(values).bfloat16()
    assert bytes(apr.quantize(half, "q4").data) == bytes(
        apr.quantize(half.float().numpy().astype(ml_dtypes.bfloat16), "q4").data
    )


def test_values_that_cannot_be_quantized_are_refused():
    for value, dtype, says in [
        (np.nan, "q8", "NaN"),
        (np.inf, "q4", "inf"),
        (1e6, "q4", "458528"),
    ]:
        with pytest.raises(ValueError, match=says):
            apr.quantize(np.array([0, value], "<f4"), dtype)
    with pytest.raises(ValueError, match="q4_k"):
        apr.quantize(np.zeros(2, "<f4"), "q4_k")
    with pytest.raises(TypeError, match="int64"):
        apr.quantize(torch.arange(3), "q8")


class Function(torch.Tensor):
    """Refuses every operation of Python's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is not for this class")


@pytest.mark.parametrize(
    "tensor",
    [
        torch._neg_view(torch.linspace(-1, 1, 64)),
        torch.linspace(-1, 1, 64).as_subclass(Function),
        torch.linspace(-1, 1, 64).expand(3, 64),
        torch.nn.Parameter(torch.linspace(-1, 1, 64)),
    ],
    ids=["negated", "subclass", "expanded", "parameter"],
)
def test_the_values_of_a_tensor_are_quantized_whatever_its_memory(tensor):
    with torch._C.DisableTorchFunctionSubclass():
        values = np.array(tensor.detach().resolve_neg().tolist(), "<f4")
    assert bytes(apr.quantize(tensor, "q8").data) == bytes(apr.quantize(values, "q8").data)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: FakeTensorMode().from_tensor(torch.ones(2)), "FakeTensor"),
        (lambda: torch.nn.LazyLinear(3).weight, "not initialized"),
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_values_are_refused_in_one_line(make, word):
    with pytest.raises(TypeError, match=word) as caught:
        apr.quantize(make(), "q8")
    assert "\n" not in str(caught.value)

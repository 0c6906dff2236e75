"""What is written to a GGUF file, the gguf package reads back: keys, shapes, values."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

DTYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


def output(values, dtype, name="token_embd.weight", chunk=4096):
    from apr.gguf.writer import GgufOutput

    flat = values.reshape(-1)

    def chunks():
        for start in range(0, flat.size, chunk):
            yield flat[start : start + chunk]

    return GgufOutput(name, values.shape, dtype, chunks)


def written(path, keys, tensors):
    import gguf

    from apr.gguf.writer import write

    with path.open("wb") as file:
        write(file, "llama", keys, tensors)
    return gguf.GGUFReader(path)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.integers(1, 5), st.integers(1, 4), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**32 - 1),
)
def test_any_tensors_are_the_packages_own_quantization(tmp_path, kinds, seed):
    import gguf
    import ml_dtypes

    rng = np.random.default_rng(seed)
    tensors, expected = [], []
    for n, (dtype, rows, blocks, negative) in enumerate(kinds):
        values = rng.normal(0, 3, (rows, 32 * blocks)).astype(np.float32) * (-1) ** negative
        tensors.append(output(values, dtype, name=f"blk.{n}.ffn_up.weight", chunk=64))
        if dtype == "bf16":
            expected.append(values.astype(ml_dtypes.bfloat16).astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType[dtype.upper()]
            expected.append(gguf.dequantize(gguf.quantize(values, kind), kind).astype(np.float32))
    reader = written(tmp_path / "m.gguf", {}, tensors)
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in tensors]
    for tensor, (dtype, *_), values in zip(reader.tensors, kinds, expected, strict=True):
        assert tensor.tensor_type.name == dtype.upper()
        assert tuple(reversed(tensor.shape.tolist())) == values.shape
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), values)


def test_keys_have_the_types_that_llama_cpp_expects(tmp_path):
    keys = {
        "llama.block_count": 3,
        "llama.rope.freq_base": 1e6,
        "tokenizer.ggml.add_bos_token": False,
        "general.name": "näme",
        "tokenizer.ggml.tokens": ["a", "Ġb"],
        "tokenizer.ggml.token_type": [1, 3],
        "tokenizer.ggml.scores": [0.0, -1.5],
    }
    reader = written(tmp_path / "m.gguf", keys, [output(np.ones((1, 32), np.float32), "f32")])
    kinds = {key: [kind.name for kind in reader.fields[key].types] for key in keys}
    assert kinds == {
        "llama.block_count": ["UINT32"],
        "llama.rope.freq_base": ["FLOAT32"],
        "tokenizer.ggml.add_bos_token": ["BOOL"],
        "general.name": ["STRING"],
        "tokenizer.ggml.tokens": ["ARRAY", "STRING"],
        "tokenizer.ggml.token_type": ["ARRAY", "INT32"],
        "tokenizer.ggml.scores": ["ARRAY", "FLOAT32"],
    }
    assert {key: reader.fields[key].contents() for key in keys} == keys


@pytest.mark.parametrize(
    ("shape", "dtype", "stored"),
    [
        ((64,), "q8_0", "f32"),
        ((64,), "bf16", "f32"),
        ((4, 64), "q4_0", "q4_0"),
        ((4, 72), "q4_0", "f16"),
        ((4, 72), "bf16", "bf16"),
    ],
)
def test_vectors_are_f32_and_odd_rows_are_f16(shape, dtype, stored):
    from apr.gguf.writer import stored_dtype

    assert stored_dtype(shape, dtype) == stored


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (float("nan"), "q8_0", "NaN"),
        (float("inf"), "f32", "NaN or infinite"),
        (1e6, "f16", "f16"),
        # The scale of a block is a float16.
        *(
            (sign * 1e7, dtype, dtype)
            for dtype in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
            for sign in (1, -1)
        ),
        (-70000, "q4_1", "-70000"),
        (-70000, "q5_1", "-70000"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_value_that_cannot_be_stored_is_refused(value, dtype, says):
    from apr.errors import WeightsError
    from apr.gguf.writer import write

    values = np.ones((4, 64), np.float32)
    values[2, 5] = value
    with pytest.raises(WeightsError, match=says) as error:
        write(io.BytesIO(), "llama", {}, [output(values, dtype)])
    assert "token_embd.weight" in str(error.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (8e6, "q8_0"),
        (-8e6, "q8_0"),
        (5e5, "q4_0"),
        (-1e6, "q5_0"),
        (9e5, "q4_1"),
        (-65504, "q4_1"),
        (2e6, "q5_1"),
    ],
)
def test_the_largest_values_of_a_block_are_stored(value, dtype, tmp_path):
    import gguf

    values = np.ones((4, 64), np.float32)
    values[2, 5] = value
    written(tmp_path / "m.gguf", {}, [output(values, dtype)])
    (tensor,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert gguf.dequantize(tensor.data, tensor.tensor_type)[2, 5] == pytest.approx(value, rel=0.05)


def test_chunks_of_any_shape_are_the_same_bytes(tmp_path):
    values = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    tensor = output(values, "q5_1")
    written(tmp_path / "one.gguf", {}, [replace(tensor, chunks=lambda: iter([values]))])
    written(tmp_path / "two.gguf", {}, [replace(tensor, chunks=lambda: iter(np.split(values, 16)))])
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()

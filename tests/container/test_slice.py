"""Parts of tensors, and state dicts, that are read by position."""

import os

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import apr

DTYPES = ["<f4", "<f2", ml_dtypes.bfloat16, "<f8", "<i4", "<i8", "i1", "u1"]


@st.composite
def arrays_and_indices(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size, np.uint8)

    def one(length):
        bounds = st.none() | st.integers(-7, 7)
        slices = st.builds(slice, bounds, bounds, st.none() | st.integers(1, 3))
        return slices | st.integers(-length, length - 1) if length else slices

    given_dims = draw(st.integers(0, len(shape)))
    index = [draw(one(length)) for length in shape[:given_dims]]
    if draw(st.booleans()):
        index.insert(draw(st.integers(given_dims, len(index))), ...)
    return values.view(dtype).reshape(shape), tuple(index)


@given(arrays_and_indices())
def test_a_slice_equals_numpy_indexing(tmp_path, case):
    array, index = case
    apr.save({"x": array}, tmp_path / "m.apr")
    part = apr.load(tmp_path / "m.apr").slice("x")
    expected = array[index]
    actual = part.numpy(index)
    assert (actual.shape, actual.dtype, actual.tobytes()) == (expected.shape, array.dtype, expected.tobytes())
    tensor = part[index]
    assert tuple(tensor.shape) == expected.shape
    assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes()
    assert tensor.untyped_storage().nbytes() == expected.nbytes


@pytest.mark.parametrize("name", ["q4", "q8", "q4_k", "q6_k"])
def test_rows_of_a_quantized_tensor_equal_rows_of_the_whole(name, data):
    path = data / "aprender-0.72" / ("row_padded_k_quants.apr" if "k" in name else "qwen2_q4_q8.apr")
    with apr.load(path) as file:
        names = [n for n in file if file.info(n).dtype == name and len(file.info(n).shape) == 2]
        assert names
        for tensor in names:
            whole = file[tensor]
            for index in (slice(1, 3), 2, (slice(None, None, 2), slice(3, 9)), (..., 1)):
                assert torch.equal(file.slice(tensor)[index], whole[index])


def test_columns_are_read_in_several_blocks(tmp_path, monkeypatch):
    from apr.container import slice as module

    monkeypatch.setattr(module, "_BLOCK_BYTES", 100)
    array = np.arange(1000, dtype="<f4").reshape(50, 20)
    apr.save({"x": array}, tmp_path / "m.apr")
    part = apr.load(tmp_path / "m.apr").slice("x")
    assert np.array_equal(part.numpy((slice(3, 47, 3), slice(2, 5))), array[3:47:3, 2:5])


def test_invalid_indices_are_refused(tmp_path):
    apr.save({"x": np.zeros((3, 4), "<f4")}, tmp_path / "m.apr")
    file = apr.load(tmp_path / "m.apr")
    part = file.slice("x")
    for index, error in [
        (3, IndexError),
        ((0, 4), IndexError),
        ((0, 0, 0), IndexError),
        ((..., ...), IndexError),
        (slice(None, None, -1), ValueError),
        ((0, slice(None, None, -1)), ValueError),
        (None, TypeError),
        ([0, 1], TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error):
            part[index]
    with pytest.raises(KeyError, match="'y'"):
        file.slice("y")


def test_a_tied_head_is_sliced_from_the_embedding(data):
    with apr.load(data / "aprender-0.72" / "qwen2_empty_head_f16.apr") as file:
        assert torch.equal(file.slice("lm_head.weight")[2:4], file["model.embed_tokens.weight"][2:4])


def test_a_file_cut_short_while_open_is_an_error_and_not_a_signal(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.ones(100_000, "<f4"), "q": np.ones((512, 512), "<f4")}, path)
    file = apr.load(path)
    kept = file["a"][:8].clone()
    os.truncate(path, 100_000)
    for act in (
        lambda: file["a"],
        lambda: file.numpy("q"),
        lambda: file.raw("q"),
        lambda: file.slice("q")[3:5],
        file.to_torch,
        lambda: apr.load(path),
    ):
        with pytest.raises(apr.TruncatedError) as caught:
            act()
        assert (caught.value.path, caught.value.offset) == (str(path), 100_000)
    report = file.verify()
    assert not report.ok
    assert torch.equal(kept, torch.ones(8))


def test_a_quantized_file_cut_short_while_open_is_an_error(tmp_path, data):
    path = tmp_path / "q.apr"
    path.write_bytes((data / "aprender-0.72" / "qwen2_q4_q8.apr").read_bytes())
    file = apr.load(path)
    name = max(file, key=lambda name: file.info(name).offset)
    os.truncate(path, file.info(name).offset)
    with pytest.raises(apr.TruncatedError, match="cut"):
        file[name]
    with pytest.raises(apr.TruncatedError, match="cut"):
        file.to_torch(names=[name])

"""Values are rounded once to a shorter dtype, and never silently to infinity."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import apr
from apr.convert import ConvertOptions, convert
from apr.errors import WeightsError
from apr.formats.open import open_model

DTYPES = {"f16": (np.float16, torch.float16), "bf16": (ml_dtypes.bfloat16, torch.bfloat16)}


def nearest(values, dtype):
    """The nearest value of a two-byte dtype, ties to even, out of a table of all its values."""
    bits = np.arange(0x7C00 if dtype == np.float16 else 0x7F80, dtype=np.uint16)  # the finite ones from 0
    table = bits.view(dtype).astype(np.float64)
    top = 2 * table[-1] - table[-2]  # would come next: what rounds to it is an infinity
    table = np.append(table, top)
    above = np.clip(np.searchsorted(table, np.abs(values)), 1, len(table) - 1)
    below = above - 1
    # Exact, because two neighbors differ by a power of two.
    low, high = np.abs(values) - table[below], table[above] - np.abs(values)
    chosen = np.where((low < high) | ((low == high) & (below % 2 == 0)), below, above)
    result = np.where(chosen == len(table) - 1, np.inf, table[chosen])
    return np.copysign(np.where(np.abs(values) >= top, np.inf, result), values)


# One is just above and one just below a tie of float16 or bfloat16, by less than float32 can tell.
TIES = np.array(
    [
        sign * 2.0**power * (1 + step * half + off)
        for half in (2.0**-11, 2.0**-8)
        for step in (1, 3, 5)
        for off in (0, 2.0**-40, -(2.0**-40), 2.0**-25, -(2.0**-25))
        for power in (0, -14, -20, 10, 14)
        for sign in (1, -1)
    ]
)
SMALL = np.array(
    [2.0**-25, 2.0**-25 * (1 + 2**-40), 2.0**-134 * (1 + 2**-40), 5e-324, 0.0, -0.0, 3 * 2.0**-25]
)
FINITE = st.lists(st.floats(-6e4, 6e4, allow_subnormal=True), min_size=1, max_size=50)


def check(values, dtype, tmp_path):
    numpy_dtype, torch_dtype = DTYPES[dtype]
    expected = nearest(values, numpy_dtype)
    apr.save({"w": values}, tmp_path / "a.apr")
    convert(tmp_path / "a.apr", tmp_path / "b.apr", ConvertOptions(dtype=dtype))
    with apr.load(tmp_path / "a.apr") as source, apr.load(tmp_path / "b.apr") as target:
        ours = [
            target.numpy("w").astype(np.float64),
            source.to_torch(dtype=torch_dtype)["w"].double().numpy(),
        ]
    for result in ours:
        assert result.tobytes() == expected.tobytes()
    if dtype == "f16":  # NumPy rounds once
        assert values.astype(np.float16).astype(np.float64).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [TIES, SMALL], ids=["ties", "small"])
def test_float64_is_rounded_once(values, dtype, tmp_path):
    check(values, dtype, tmp_path)


@given(FINITE, st.sampled_from(sorted(DTYPES)))
def test_any_float64_becomes_the_nearest_value(tmp_path, values, dtype):
    check(np.array(values), dtype, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gguf_files_have_the_nearest_values_too(dtype):
    from apr.gguf.writer import GgufOutput, rounded

    values = TIES[: len(TIES) // 2 * 2].reshape(2, -1)
    expected = nearest(values, DTYPES[dtype][0])
    output = GgufOutput("w", values.shape, dtype, lambda: iter((values,)))
    stored = np.concatenate(list(output.byte_chunks())).view(DTYPES[dtype][0])
    assert np.array_equal(stored.astype(np.float64), expected.reshape(-1))
    assert np.array_equal(rounded(values, dtype), expected)


BEYOND = {
    "f32": np.array([1.0, 1e39]),
    "f16": np.array([1.0, -70000.0]),
    "bf16": np.array([1.0, 3.4e38], np.float32),
}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("apr", "b.apr"),
        ("apr", "b.safetensors"),
        ("apr", "several/model.apr.index.json"),
        ("apr", "several/model.safetensors.index.json"),
        ("safetensors", "b.apr"),
    ],
)
@pytest.mark.parametrize("dtype", BEYOND)
def test_a_value_beyond_the_range_is_refused_with_its_tensor(dtype, target, source, tmp_path, run):
    path = tmp_path / f"a.{source}"
    apr.save({"fine": np.ones(3), "large": BEYOND[dtype]}, tmp_path / "a.apr")
    if source == "safetensors":
        convert(tmp_path / "a.apr", path)
    code, out, err = run("convert", path, tmp_path / target, "--dtype", dtype)
    assert (code, out) == (6, "")
    (line,) = err.splitlines()
    assert f"{path}: large" in line
    assert f"{BEYOND[dtype][1]:g}" in line
    assert "--allow-overflow" in line
    assert not (tmp_path / target).exists()
    code, _, err = run("convert", path, tmp_path / target, "--dtype", dtype, "--allow-overflow")
    assert (code, err) == (0, "")
    with open_model(tmp_path / target) as file:
        assert np.isinf(file.numpy("large")).tolist() == [False, True]


def test_infinities_that_were_there_stay(tmp_path):
    apr.save({"w": np.array([np.inf, -np.inf, np.nan, 1.0])}, tmp_path / "a.apr")
    convert(tmp_path / "a.apr", tmp_path / "b.apr", ConvertOptions(dtype="f16"))
    assert str(apr.load(tmp_path / "b.apr").numpy("w")) == "[ inf -inf  nan   1.]"
    assert (
        str(apr.load(tmp_path / "a.apr").to_torch(dtype=torch.float16)["w"].numpy())
        == "[ inf -inf  nan   1.]"
    )


@pytest.mark.parametrize("arguments", [["--allow-overflow"], ["--dtype", "f16", "--allow-overflow"]])
def test_the_flag_is_refused_where_it_does_nothing(arguments, tmp_path, run):
    apr.save({"w": np.ones(3)}, tmp_path / "a.apr")
    code, _, err = run("convert", tmp_path / "a.apr", tmp_path / "b.gguf", *arguments)
    assert code == 2
    assert "--allow-overflow" in err


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([1.0, 70000.0], np.float32), torch.float16),
        (np.array([1.0, 1e39]), torch.float32),
        (np.array([1.0, 1e39]), torch.bfloat16),
        (np.array([1.0, 1e39]), torch.float16),
        (np.array([1.0, 3.4e38], np.float32), torch.bfloat16),
        (np.array([1.0, 70000.0], ml_dtypes.bfloat16), torch.float16),
        (np.array([1.0, 500.0], np.float32), torch.float8_e4m3fn),
        (np.array([1.0, 2.0**100], ml_dtypes.float8_e8m0fnu), torch.float16),
        (np.array([np.nan, 70000.0], np.float32), torch.float16),
        (np.array([-np.inf, 70000.0], np.float32), torch.float16),
    ],
)
def test_a_state_dict_in_another_dtype_has_no_new_infinities(values, dtype, tmp_path):
    apr.save({"fine": np.ones(3), "large": values}, tmp_path / "a.apr")
    with apr.load(tmp_path / "a.apr") as file:
        with pytest.raises(WeightsError, match=r"large.*allow_overflow") as caught:
            file.to_torch(dtype=dtype)
        assert f"{float(values[1]):g}" in str(caught.value)
        assert (caught.value.path, caught.value.tensor) == (str(tmp_path / "a.apr"), "large")
        loaded = file.to_torch(dtype=dtype, allow_overflow=True)["large"]
    expected = torch.from_numpy(values.astype(np.float64)).to(dtype)
    assert loaded.float().allclose(expected.float(), equal_nan=True)


def test_the_value_that_is_beyond_the_range_is_named_and_not_a_nearby_one(tmp_path):
    # NumPy rounds the first one to the largest float16, 65504. torch rounds it twice, to infinity.
    values = np.array([65519.9999999, 70000.0])
    with np.errstate(over="ignore"):
        assert np.isfinite(values.astype(np.float16)).tolist() == [True, False]
    apr.save({"w": values}, tmp_path / "a.apr")
    with pytest.raises(WeightsError, match="70000"):
        apr.load(tmp_path / "a.apr").to_torch(dtype=torch.float16)


@pytest.mark.cuda
def test_a_gpu_rounds_once_and_refuses_alike(tmp_path):
    apr.save({"w": TIES, "large": np.array([1e39])}, tmp_path / "a.apr")
    with apr.load(tmp_path / "a.apr") as file:
        for numpy_dtype, torch_dtype in DTYPES.values():
            loaded = file.to_torch("cuda", torch_dtype, ["w"])["w"].double().cpu().numpy()
            assert loaded.tobytes() == nearest(TIES, numpy_dtype).tobytes()
            with pytest.raises(WeightsError, match=r"large.*1e\+39"):
                file.to_torch("cuda", torch_dtype)

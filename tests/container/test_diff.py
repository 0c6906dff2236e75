"""apr.diff: what differs between two files."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.test_container import METADATA, TENSORS, bits

import apr

DATA = Path(__file__).parents[1] / "fixtures"
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def compared(tmp_path):
    """The difference of one tensor."""

    def compared(a, b, **options):
        apr.save({"w": np.asarray(a)}, tmp_path / "a.apr")
        apr.save({"w": np.asarray(b)}, tmp_path / "b.apr")
        report = apr.diff(tmp_path / "a.apr", tmp_path / "b.apr", **options)
        assert report.same == (not report.tensors)
        return report.tensors[0] if report.tensors else None

    return compared


@given(TENSORS, METADATA)
def test_a_file_is_the_same_as_itself(tmp_path, tensors, metadata):
    path = tmp_path / "m.apr"
    apr.save(tensors, path, metadata)
    for atol in (None, 0.0, 1.0):
        report = apr.diff(path, path, atol=atol)
        assert report.same
        assert report.compared == len(tensors)


@given(TENSORS, TENSORS, METADATA, METADATA)
def test_files_are_the_same_if_every_bit_and_every_key_is(tmp_path, one, two, some, others):
    apr.save(one, tmp_path / "a.apr", some)
    apr.save(two, tmp_path / "b.apr", others)
    report = apr.diff(tmp_path / "a.apr", tmp_path / "b.apr")
    assert set(report.only_in_a) == one.keys() - two.keys()
    assert set(report.only_in_b) == two.keys() - one.keys()
    changed = {name for name in one.keys() & two.keys() if bits(one[name]) != bits(two[name])}
    assert {tensor.name for tensor in report.tensors} == changed
    back = apr.diff(tmp_path / "b.apr", tmp_path / "a.apr")
    assert (back.added, back.removed) == (report.removed, report.added)
    json.dumps(report.to_dict(), allow_nan=False)


@given(st.data(), st.sampled_from(["f8", "f4", "i8", "u1"]), st.floats(0, 10))
def test_the_count_and_the_largest_difference_match_numpy(tmp_path, data, dtype, atol):
    size = data.draw(st.integers(1, 50))
    values = st.integers(0, 100)
    a, b = (np.array(data.draw(st.lists(values, min_size=size, max_size=size)), dtype) for _ in "ab")
    apr.save({"w": a}, tmp_path / "a.apr")
    apr.save({"w": b}, tmp_path / "b.apr")
    distance = np.abs(a.astype("f8") - b.astype("f8"))
    report = apr.diff(tmp_path / "a.apr", tmp_path / "b.apr", atol=atol)
    assert report.same == (distance <= atol).all()
    if not report.same:
        assert report.tensors[0].differing == (distance > atol).sum()
        assert report.tensors[0].largest == distance.max()


@pytest.mark.parametrize(
    ("a", "b", "by_bits", "by_numbers"),
    [
        ([NAN], [NAN], None, None),
        ([NAN], [-NAN], (1, None, 1), None),
        ([0.0], [-0.0], (1, 0.0, 0), None),
        ([INF, 1.0], [INF, 1.5], (1, 0.5, 0), (1, 0.5, 0)),
        ([INF], [-INF], (1, None, 1), (1, None, 1)),
        ([NAN, 1.0], [1.0, 3.0], (2, 2.0, 1), (2, 2.0, 1)),
        ([1e308], [-1e308], (1, None, 1), (1, None, 1)),
    ],
)
def test_nan_infinities_and_signed_zeros(a, b, by_bits, by_numbers, compared):
    for atol, wanted in ((None, by_bits), (0.0, by_numbers)):
        report = compared(a, b, atol=atol)
        got = None if report is None else (report.differing, report.largest, report.nonfinite)
        assert got == wanted


def test_integers_are_compared_exactly(compared):
    low, high = -(2**63), 2**63 - 1
    report = compared(np.array([low, 2**53 + 1]), np.array([high, 2**53]))
    assert (report.differing, report.largest) == (2, 2**64 - 1)
    assert compared(np.array([2**53 + 1]), np.array([2**53]), atol=0).largest == 1
    assert compared(np.array([2**53 + 1]), np.array([2**53]), atol=1) is None


def test_a_different_dtype_or_shape_is_reported(compared):
    values = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    report = compared(values, values.astype(ml_dtypes.bfloat16))
    assert (report.dtype, report.differing) == (("f32", "bf16"), 0)
    assert str(report) == "w: dtype f32 -> bf16"
    report = compared(values, values.astype(np.float64) + 0.25)
    assert str(report) == "w: dtype f32 -> f64; 4 of 4 values differ, by at most 0.25"
    report = compared(values, values.reshape(4))
    assert (report.shape, report.differing) == (((2, 2), (4,)), None)
    assert str(report) == "w: shape [2, 2] -> [4]"


def test_metadata_are_compared_as_json(tmp_path):
    a = {"same": {"x": 1, "y": 2}, "number": 1, "bool": 1, "gone": None, "deep": [1, {"a": 2}]}
    b = {"new": [], "same": {"y": 2, "x": 1}, "number": 1.0, "bool": True, "deep": [1, {"a": 3}]}
    apr.save({}, tmp_path / "a.apr", a)
    apr.save({}, tmp_path / "b.apr", b)
    report = apr.diff(tmp_path / "a.apr", tmp_path / "b.apr")
    assert report.added == {"new": []}
    assert report.removed == {"gone": None}
    assert report.changed == {
        "number": (1, 1.0),
        "bool": (1, True),
        "deep": ([1, {"a": 2}], [1, {"a": 3}]),
    }


def test_an_empty_head_equals_its_embedding(tmp_path):
    path = DATA / "aprender-0.72" / "qwen2_empty_head_f16.apr"
    with apr.load(path) as file:
        assert file.info("lm_head.weight").tied
        apr.save(dict(file), tmp_path / "full.apr", file.metadata)
    assert apr.diff(path, tmp_path / "full.apr").same


def test_quantized_tensors_are_compared_by_their_values():
    directory = DATA / "aprender-0.72"
    report = apr.diff(directory / "qwen2_untied_f32.apr", directory / "qwen2_q4_q8.apr")
    assert {"q4", "q8"} <= {tensor.dtype[1] for tensor in report.tensors}
    one, two = apr.load(report.a), apr.load(report.b)
    for tensor in report.tensors:
        if tensor.differing is not None:
            distance = (one[tensor.name].double() - two[tensor.name].double()).abs()
            assert tensor.largest in {None, distance.max().item()}
            assert tensor.differing == (distance > 0).sum()


def test_memory_does_not_grow_with_the_files(tmp_path):
    values = np.zeros(80 << 20, np.uint8)
    apr.save({"w": values}, tmp_path / "a.apr")
    values[::2] = 7
    apr.save({"w": values}, tmp_path / "b.apr")
    code = """
import resource, sys, apr, apr.container.diff, apr.container.slice
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
report = apr.diff(*sys.argv[1:])
print(report.tensors[0].differing, (peak() - before) * 1024)
"""
    command = [sys.executable, "-c", code, tmp_path / "a.apr", tmp_path / "b.apr"]
    differing, grown = subprocess.run(command, capture_output=True, check=True).stdout.split()
    assert int(differing) == values.size // 2
    assert int(grown) < 60 << 20


@pytest.mark.parametrize("atol", [-1, NAN])
def test_a_negative_tolerance_is_refused(atol, run, tmp_path):
    apr.save({}, tmp_path / "m.apr")
    with pytest.raises(ValueError, match="atol"):
        apr.diff(tmp_path / "m.apr", tmp_path / "m.apr", atol=atol)
    code, _, err = run("diff", tmp_path / "m.apr", tmp_path / "m.apr", f"--atol={atol}")
    assert code == 2
    assert "--atol" in err

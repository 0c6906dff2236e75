"""apr.save: every value that the format can hold, as a whole or not at all."""

import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import apr
import apr.numpy
from apr.container.save import TensorSpec, write

CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
DEEP: list[object] = []
for _ in range(64):
    DEEP = [DEEP]


def test_numpy_and_torch_values_of_any_layout_are_saved(tmp_path):
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "expanded": base[:, :1].expand(4, 3),
        "bf16": base.to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3, dtype=torch.float16),
        "grad": torch.nn.Parameter(base.clone()),
        "numpy.fortran": np.asfortranarray(base.numpy()),
        "numpy.reversed": base.numpy()[::-1],
        "numpy.big_endian": np.arange(3, dtype=">i4"),
        "numpy.bf16": np.arange(3).astype(ml_dtypes.bfloat16),
        "numpy.scalar": np.float32(1.5),
        "numpy.bytes": np.arange(256, dtype=np.uint8),
    }
    apr.save(tensors, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr", verify="full") as file:
        assert set(file) == set(tensors)
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor):
                assert file[name].equal(value), name
                assert file[name].dtype == value.dtype
            else:
                assert np.array_equal(file.numpy(name), value), name
                assert file.info(name).shape == value.shape


def test_a_file_may_be_saved_over_while_its_tensors_are_in_use(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"a": np.arange(1000.0)}, path, {"n": 1})
    file = apr.load(path)
    apr.save(dict(file) | {"b": np.ones(3)}, path, {"n": 2})
    assert file["a"].numpy()[999] == 999
    assert (file.metadata["n"], apr.load(path).metadata["n"]) == (1, 2)


def test_two_saves_are_the_same_bytes_whatever_the_order(tmp_path):
    a, b = np.arange(5), np.ones((2, 2), np.float32)
    apr.save({"a": a, "b": b}, tmp_path / "1.apr", {"x": 1, "y": [2]})
    apr.save({"b": b, "a": a}, tmp_path / "2.apr", {"x": 1, "y": [2]})
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "says"),
    [
        ({"a": [1, 2]}, None, TypeError, "'a'.*list"),
        ({"a": np.ones(2, np.complex128)}, None, TypeError, "'a'.*complex128"),
        ({"a": np.array(["text"])}, None, TypeError, "'a'.*U4"),
        ({}, {"apr.dtypes": {}}, ValueError, "apr.dtypes.*reserved"),
        ({3: np.ones(2)}, None, TypeError, "3"),
        ({"": np.ones(2)}, None, apr.AprError, "name"),
        ({"a\0": np.ones(2)}, None, apr.AprError, "NUL"),
        ({"a" * 257: np.ones(2)}, None, apr.AprError, "257"),
        ({"a": np.ones((1,) * 9)}, None, apr.AprError, "9"),
        ({}, {1: 2}, TypeError, "1"),
        ({}, {"a": {2: 3}}, TypeError, "2"),
        ({}, {"a": object()}, TypeError, "'a'"),
        ({}, {"a": float("nan")}, ValueError, "'a'"),
        ({}, {"a": "\ud800"}, ValueError, "'a'"),
        ({}, {"\ud800": 1}, ValueError, "surrogate"),
        ({}, {"a": CIRCLE}, ValueError, "'a'"),
        ({}, {"a": DEEP}, apr.FormatError, "nested"),
        ({}, {"a": "x" * (16 << 20)}, apr.AprError, "16 MiB"),
    ],
)
def test_unsupported_contents_are_refused_and_leave_the_old_file(tensors, metadata, error, says, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    with pytest.raises(error, match=says):
        apr.save(tensors, path, metadata)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]


def test_unsupported_torch_tensors_are_named(tmp_path):
    import torch

    for value, says in [
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta device"),
    ]:
        with pytest.raises(TypeError, match=f"'a'.*{says}"):
            apr.save({"a": value}, tmp_path / "m.apr")


def test_a_missing_directory_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        apr.save({}, tmp_path / "gone" / "m.apr")
    with pytest.raises(IsADirectoryError):
        apr.save({}, tmp_path)


def test_wrong_arguments_are_refused(tmp_path):
    one = {"a": np.ones(3)}
    for act, kind, says in [
        (lambda: apr.save(one, None), TypeError, "NoneType"),
        (lambda: apr.numpy.save_file(one, None), TypeError, "NoneType"),
        (lambda: apr.save(one, tmp_path / "m.apr", [1]), TypeError, "mapping.*list"),
        (
            lambda: apr.save({"\ud800": one["a"]}, tmp_path / "m.apr"),
            ValueError,
            "surrogate",
        ),
        (lambda: apr.load(b"m.apr"), TypeError, "bytes"),
    ]:
        with pytest.raises(kind, match=says):
            act()
    assert list(tmp_path.iterdir()) == []


# Saves over m.apr and kills itself when the given number of tensors has been written; 99 is just before
# the rename, which is the writer's last act.
KILLED = """
import os, signal, sys
import numpy as np
from apr.container.save import TensorSpec, write

left = int(sys.argv[2])

def values(spec):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return np.full(100_000, 2.0)

write(sys.argv[1], {"new": True}, [TensorSpec(f"w{i}", "f64", (100_000,)) for i in range(4)], values)
"""


@pytest.mark.parametrize("tensors", [0, 1, 3])
def test_a_save_that_is_killed_leaves_the_old_file_intact(tensors, tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"w0": np.ones(100_000)}, path, {"new": False})
    old = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(tensors)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.glob("*.apr")] == ["m.apr"]
    # The next save removes what the killed one left.
    apr.save({"w0": np.ones(3)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]


def test_a_save_killed_at_any_moment_leaves_one_of_the_two_files(tmp_path):
    path = tmp_path / "m.apr"
    both = set()
    for new in (False, True):
        apr.save({"w": np.full(1_000_000, float(new))}, path, {"new": new})
        both.add(path.read_bytes())
    loop = """
import sys, numpy as np, apr
print(flush=True)
for i in range(10_000):
    apr.save({"w": np.full(1_000_000, float(i % 2))}, sys.argv[1], {"new": bool(i % 2)})
"""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", loop, path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            # It is somewhere in a save by the time that a whole file has been read.
            for _ in range(5):
                assert path.read_bytes() in both
            process.kill()
        assert path.read_bytes() in both
        assert apr.verify(path).ok


def test_a_tensor_is_written_in_parts(tmp_path):
    values = np.arange(1000, dtype=np.float32)
    specs = [TensorSpec("a", "f32", (10, 100)), TensorSpec("b", "f32", (0,))]
    parts = {"a": lambda: iter([values[:3], values[3:700], values[700:]]), "b": lambda: iter([])}
    write(tmp_path / "1.apr", None, specs, lambda spec: parts[spec.name]())
    apr.save({"a": values.reshape(10, 100), "b": values[:0]}, tmp_path / "2.apr")
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()
    for sizes in ([999], [1000, 1]):
        with pytest.raises(apr.AprError, match=r'"a".*4000'):
            write(tmp_path / "3.apr", None, specs, lambda _: iter([np.zeros(n, "f4") for n in sizes]))  # noqa: B023
        assert not (tmp_path / "3.apr").exists()


@pytest.mark.parametrize(
    ("metadata", "flag", "is_set"),
    [
        ({"sharding": {"shard_count": 2, "shard_index": 0}}, "SHARDED", True),
        ({"sharding": None}, "SHARDED", False),
        ({"tokenizer.vocabulary": ["a"]}, "HAS_VOCAB", True),
        ({}, "HAS_VOCAB", False),
    ],
)
def test_flags_announce_metadata_keys(metadata, flag, is_set, tmp_path):
    apr.save({}, tmp_path / "m.apr", metadata)
    assert (flag in {found.name for found in apr.load(tmp_path / "m.apr").header.flags}) == is_set


@pytest.mark.parametrize("name", ["row_padded_k_quants.apr", "qwen2_q4_q8.apr"])
def test_quantized_bytes_are_saved_unchanged(name, data, tmp_path):
    source = apr.load(data / "aprender-0.72" / name)
    quantized = {name for name in source if source.info(name).dtype[0] == "q"}
    given = {
        name: apr.Quantized(source.info(name).dtype, source.info(name).shape, source.raw(name))
        for name in quantized
    }
    apr.save(given, tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as saved:
        assert quantized
        for name in quantized:
            assert saved.raw(name) == source.raw(name)
            assert saved[name].equal(source[name])
            assert saved.header.flags & (1 << 5)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "says"),
    [
        ("f32", (1,), b"1234", "'f32'"),
        ("q8", (4,), b"1234567", r"q8.*8"),
        ("q4_k", (2, 257), bytes(144 * 3), r"576"),
        ("q4", (2**62, 4), b"", "range"),
    ],
)
def test_quantized_bytes_of_the_wrong_size_are_refused(dtype, shape, data, says):
    with pytest.raises(ValueError, match=says):
        apr.Quantized(dtype, shape, data)


def test_quantized_bytes_are_read_only_and_pickle():
    import pickle

    given = apr.Quantized("q8", [4], bytearray(8))
    assert (given.nbytes, given.shape, given.data.readonly) == (8, (4,), True)
    assert pickle.loads(pickle.dumps(given)) == given
    assert "data" not in repr(given)

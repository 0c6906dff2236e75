"""apr.Writer: a file tensor by tensor, in constant memory, as a whole or not at all."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.test_container import METADATA, TENSORS, bits

import apr
from apr import testing


def files(directory):
    return sorted(path.name for path in directory.iterdir())


@given(
    st.lists(st.tuples(testing.names(), testing.tensors()), max_size=6, unique_by=lambda pair: pair[0]),
    METADATA,
)
def test_any_sequence_of_adds_comes_back_with_every_bit(tmp_path, pairs, metadata):
    path = tmp_path / "m.apr"
    with apr.Writer(path, metadata) as writer:
        for name, array in pairs:
            writer.add(name, array)
    with apr.load(path, verify="full") as file:
        assert list(file) == sorted(dict(pairs), key=str.encode)
        for name, array in pairs:
            assert bits(file.numpy(name)) == bits(array)
        assert json.dumps(file.metadata) == json.dumps(metadata)
        stored = [name for name, array in pairs if array.size]
        assert stored == sorted(stored, key=lambda name: file.info(name).offset)


@given(TENSORS, METADATA)
def test_the_same_adds_are_the_same_bytes_and_in_name_order_those_of_save(tmp_path, tensors, metadata):
    for name in ("1.apr", "2.apr"):
        with apr.Writer(tmp_path / name, metadata) as writer:
            for key in sorted(tensors, key=str.encode):
                writer.add(key, tensors[key])
    apr.save(tensors, tmp_path / "3.apr", metadata)
    first = (tmp_path / "1.apr").read_bytes()
    assert first == (tmp_path / "2.apr").read_bytes() == (tmp_path / "3.apr").read_bytes()


def test_torch_values_and_quantized_bytes_are_added(tmp_path):
    import torch

    q8 = apr.Quantized("q8", (4,), np.float32(0.5).tobytes() + bytes([1, 2, 3, 255]))
    with apr.Writer(tmp_path / "m.apr") as writer:
        writer.add("z", torch.arange(6).reshape(2, 3).T)
        writer.add("a", q8)
    with apr.load(tmp_path / "m.apr", verify="full") as file:
        assert file["z"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert file["a"].tolist() == [0.5, 1.0, 1.5, -0.5]
        assert file.raw("a") == q8.data
        assert {flag.name for flag in file.header.flags} == {"QUANTIZED", "LAYOUT_ROW_MAJOR"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    with pytest.raises(error), apr.Writer(path) as writer:
        writer.add("a", np.ones(100_000))
        raise error
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["m.apr"]
    with pytest.raises(apr.AprError, match="closed"):
        writer.add("b", np.ones(3))


def test_a_wrong_add_is_refused_and_the_writer_stays_usable(tmp_path):
    with apr.Writer(tmp_path / "m.apr") as writer:
        writer.add("a", np.ones(3))
        for name, value, error, says in [
            ("a", np.ones(3), apr.AprError, '"a"'),
            ("b", np.ones(3, complex), TypeError, "'b'.*complex128"),
            ("b", [1.0], TypeError, "'b'.*list"),
            (7, np.ones(3), TypeError, "7"),
            ("", np.ones(3), apr.AprError, "name"),
            ("b", np.ones((1,) * 9), apr.AprError, "9"),
        ]:
            with pytest.raises(error, match=says):
                writer.add(name, value)
        writer.add("b", np.zeros(2))
    assert list(apr.load(tmp_path / "m.apr", verify="full")) == ["a", "b"]


def test_a_closed_writer_refuses_tensors_and_closes_twice(tmp_path):
    path = tmp_path / "m.apr"
    writer = apr.Writer(path)
    writer.add("a", np.ones(3))
    assert files(tmp_path) != ["m.apr"]
    writer.close()
    writer.close()
    writer.abort()
    assert files(tmp_path) == ["m.apr"]
    with pytest.raises(apr.AprError, match=r"m\.apr.*closed"):
        writer.add("b", np.ones(3))


def test_an_aborted_writer_writes_nothing(tmp_path):
    with apr.Writer(tmp_path / "m.apr") as writer:
        writer.add("a", np.ones(3))
        writer.abort()
    assert files(tmp_path) == []


def test_a_writer_that_is_not_closed_writes_nothing(tmp_path):
    apr.Writer(tmp_path / "m.apr").add("a", np.ones(3))
    assert files(tmp_path) == []


def test_metadata_may_change_until_close(tmp_path):
    given = {"a": 1}
    with apr.Writer(tmp_path / "m.apr", given) as writer:
        writer.add("x", np.ones(3))
        writer.metadata["b"] = 2
        writer.metadata["sharding"] = {"shard_count": 1, "shard_index": 0}
    file = apr.load(tmp_path / "m.apr")
    assert (given, file.metadata["b"]) == ({"a": 1}, 2)
    assert "SHARDED" in {flag.name for flag in file.header.flags}


def test_metadata_that_json_cannot_represent_are_refused_early_and_at_close(tmp_path):
    with pytest.raises(TypeError, match="'a'"):
        apr.Writer(tmp_path / "m.apr", {"a": object()})
    with pytest.raises(TypeError, match="'a'"), apr.Writer(tmp_path / "m.apr") as writer:
        writer.metadata["a"] = object()
    assert files(tmp_path) == []


def test_an_unwritable_path_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        apr.Writer(tmp_path / "gone" / "m.apr")
    with pytest.raises(IsADirectoryError):
        apr.Writer(tmp_path)


# Runs with a limit on the size of any file, as on a full disk.
FULL = """
import resource, signal, sys, numpy as np, apr
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with apr.Writer(sys.argv[1]) as writer:
    try:
        for i in range(20):
            writer.add(f"w{i}", np.ones(16_384))
    except OSError as error:
        print(error)
        try:
            writer.add("more", np.ones(3))
        except apr.AprError as error:
            print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_later_calls_fail(tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()
    assert "File too large" in first
    assert str(path) in first
    assert "m.apr" in second
    assert "AprError" in done.stderr  # close, at the end of the block
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["m.apr"]


# Interrupts itself in the middle of its work.
INTERRUPTED = """
import os, signal, sys, numpy as np, apr
with apr.Writer(sys.argv[1]) as writer:
    writer.add("a", np.ones(100_000))
    os.kill(os.getpid(), int(sys.argv[2]))
    writer.add("b", np.ones(100_000))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_writer_that_is_ended_leaves_the_old_file_intact(sent, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", INTERRUPTED, path, str(int(sent))]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -sent
    assert path.read_bytes() == b"old"
    assert [name for name in files(tmp_path) if name.endswith(".apr")] == ["m.apr"]
    apr.save({}, path)  # clears what a killed one left
    assert files(tmp_path) == ["m.apr"]


# Writes as many tensors of 4 MB as it is told and prints by how much its memory grew.
GROWTH = """
import resource, sys, numpy as np, apr
value = np.zeros(1 << 20, np.float32)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with apr.Writer(sys.argv[1]) as writer:
    writer.add("first", value)
    before = peak()
    for i in range(int(sys.argv[2])):
        writer.add(f"w{i}", value)
print((peak() - before) * 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "m.apr"
    done = subprocess.run([sys.executable, "-c", GROWTH, path, "60"], capture_output=True, check=True)
    assert path.stat().st_size > 60 << 22
    assert int(done.stdout) < 8 << 20


def test_a_hundred_thousand_tensors_are_written(tmp_path):
    value = np.arange(4, dtype=np.float32)
    with apr.Writer(tmp_path / "m.apr") as writer:
        for i in range(100_000):
            writer.add(f"w{i}", value)
    file = apr.load(tmp_path / "m.apr", verify="full")
    assert len(file) == 100_000
    assert np.array_equal(file.numpy("w99999"), value)
    assert os.path.getsize(tmp_path / "m.apr") < 100_000 * 150  # noqa: PTH202

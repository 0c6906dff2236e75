"""The compiled module and memory that Python owns: arrays may be shared, overlap or change during a call."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

import apr
from apr._core import Container, TokenStream, quantize

COUNT = 3 << 20  # values of a byte each: several of the parts that threads read side by side


@pytest.fixture
def stored(tmp_path):
    """A file with a tensor of ones, one of twos and a quantized one."""
    path = tmp_path / "m.apr"
    values = np.linspace(-1, 1, 1 << 17, dtype=np.float32)
    tensors = {name: np.full(COUNT, number, np.uint8) for name, number in (("ones", 1), ("twos", 2))}
    apr.save(tensors | {"q8": apr.quantize(values, "q8")}, path)
    return Container(path)


@pytest.mark.parametrize(("buffers", "held"), [(1, 0), (2, 1), (6, 2), (3, 2)])
def test_a_ring_passes_on_every_byte_in_order(stored, tmp_path, buffers, held):
    content = (tmp_path / "m.apr").read_bytes()
    size = 600_001
    ring = [np.zeros(size, np.uint8) for _ in range(buffers)]
    parts = [(start, min(size, len(content) - start)) for start in range(0, len(content), size)]
    passed_on = []

    def use(part):
        # Those that are held are still as they were read.
        for number in range(max(0, part - held), part + 1):
            start, length = parts[number]
            if number == part or number > part - held:
                assert ring[number % buffers][:length].tobytes() == content[start : start + length]
        passed_on.append(part)

    stored.read_ring(parts, ring, held, 100_000, use)
    assert passed_on == list(range(len(parts)))


def test_a_ring_ends_at_the_first_error(stored):
    ring = [np.zeros(100, np.uint8) for _ in range(3)]
    with pytest.raises(ZeroDivisionError):
        stored.read_ring([(0, 100)] * 50, ring, 1, 10, lambda _: 1 / 0)
    with pytest.raises(OSError, match=r"m\.apr"):
        stored.read_ring([(0, 100), (stored.size - 5, 100)], ring, 1, 10, lambda _: None)
    for held, segment in ((3, 10), (1, 0)):
        with pytest.raises(ValueError, match="ring"):
            stored.read_ring([(0, 10)], ring, held, segment, lambda _: None)


def offset(container, name):
    return container.info(name)[3]


@contextmanager
def written_by_another_thread(array):
    """Another thread writes to the array until the block ends."""
    done = threading.Event()

    def write():
        value = 0
        while not done.is_set():
            array[...] = value = (value + 1) % 100

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            yield
        finally:
            done.set()
        writing.result()


def test_pages_of_another_file_give_no_capsule(stored, tmp_path):
    apr.save({"ones": np.ones(COUNT, np.uint8)}, tmp_path / "other.apr")
    other = Container(tmp_path / "other.apr")
    with pytest.raises(ValueError, match="ones"):
        stored.dlpack("ones", other.map())
    assert stored.dlpack("ones", stored.map()) is not None


def test_one_array_given_twice_holds_bytes_of_either_part(stored):
    out = np.zeros(COUNT, np.uint8)
    stored.read([(offset(stored, "ones"), out), (offset(stored, "twos"), out)])
    assert set(np.unique(out)) <= {1, 2}


def test_overlapping_arrays_hold_bytes_of_either_part_where_they_overlap(stored):
    out = np.zeros(COUNT + 1, np.uint8)
    stored.read([(offset(stored, "ones"), out[:-1]), (offset(stored, "twos"), out[1:])])
    assert (out[0], out[-1]) == (1, 2)
    assert set(np.unique(out[1:-1])) <= {1, 2}


def test_calls_in_several_threads_fill_one_array(stored):
    out, floats = np.zeros(COUNT, np.uint8), np.zeros(1 << 17, np.float32)
    alone = np.zeros_like(floats)
    stored.dequantize("q8", 0, alone)

    def fill(name):
        for _ in range(5):
            stored.read([(offset(stored, name), out)])
            stored.dequantize("q8", 0, floats)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fill, ["ones", "twos"] * 2))
    assert set(np.unique(out)) <= {1, 2}
    assert np.array_equal(floats, alone)


def test_an_array_that_another_thread_writes_to_is_filled_all_the_same(stored, tmp_path):
    shard = tmp_path / "shard-00000.bin"
    np.arange(100, dtype="<u4").tofile(shard)
    out = np.zeros(COUNT, np.uint8)
    with written_by_another_thread(out):
        for _ in range(5):
            stored.read([(offset(stored, "ones"), out)])
            stored.dequantize("q8", 0, out[: 1 << 19].view(np.float32))
            TokenStream([(shard, 100)]).read(0, out[:400])
    stored.read([(offset(stored, "ones"), out)])
    assert (out == 1).all()


def test_the_checksum_fits_an_array_that_changed_while_it_was_saved(tmp_path):
    values = np.zeros(16 << 20, np.uint8)
    with written_by_another_thread(values):
        apr.save({"a": values}, tmp_path / "saved.apr")
        with apr.Writer(tmp_path / "streamed.apr") as writer:
            writer.add("a", values)
    assert apr.verify(tmp_path / "saved.apr").ok
    assert apr.verify(tmp_path / "streamed.apr").ok


def test_the_pages_of_a_file_can_be_read_into(stored):
    pages = stored.map()
    ones, twos = (offset(stored, name) for name in ("ones", "twos"))
    stored.read([(twos, memoryview(pages)[ones : ones + COUNT])])
    assert set(memoryview(pages)[ones : ones + COUNT]) == {2}
    out = np.zeros(COUNT, np.uint8)
    stored.read([(ones, out)])
    assert (out == 1).all()  # the file is unchanged


@pytest.mark.parametrize(
    "out", [b"12", np.zeros((4, 4), np.uint8)[:, :2], np.broadcast_to(np.zeros(1, np.uint8), (8,))]
)
def test_memory_that_is_read_only_or_has_gaps_is_not_written_to(stored, out):
    with pytest.raises(ValueError, match=r"read-only|contiguous"):
        stored.read([(0, out)])


def test_dequantized_values_need_memory_of_float32(stored):
    with pytest.raises(BufferError):
        stored.dequantize("q8", 0, np.zeros(8, np.float64))


def test_values_to_quantize_are_float32():
    with pytest.raises(BufferError):
        quantize("q8", np.zeros(8, np.float64))


def test_empty_memory_is_read_and_written(stored, tmp_path):
    empty = np.zeros(0, np.uint8)
    stored.read([(0, empty)])
    apr.save({"empty": empty}, tmp_path / "empty.apr")
    assert apr.verify(tmp_path / "empty.apr").ok

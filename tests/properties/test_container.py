"""What holds of every file: what is saved comes back, and no bytes at all do harm."""

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import apr
from apr import testing
from apr.cli import main

TENSORS = st.dictionaries(testing.names(), testing.tensors(), max_size=6)
METADATA = testing.metadata()


def bits(array):
    return array.dtype.str, array.dtype.name, array.shape, array.tobytes()


@given(TENSORS, METADATA)
def test_saved_tensors_come_back_with_every_bit(tmp_path, tensors, metadata):
    path = tmp_path / "m.apr"
    apr.save(tensors, path, metadata)
    with apr.load(path, verify="full") as file:
        assert list(file) == sorted(tensors, key=str.encode)
        for name, array in tensors.items():
            assert bits(file.numpy(name)) == bits(array)
            assert file[name].shape == array.shape
            assert bytes(file.raw(name)) == array.tobytes()
        assert json.dumps(file.metadata) == json.dumps(metadata)
    assert apr.verify(path).ok


@given(TENSORS, METADATA)
def test_torch_tensors_come_back_with_every_bit(tmp_path, tensors, metadata):
    import torch

    path, again = tmp_path / "m.apr", tmp_path / "again.apr"
    apr.save(tensors, path, metadata)
    file = apr.load(path)
    apr.save(dict(file), again, file.metadata)
    assert path.read_bytes() == again.read_bytes()
    for name, tensor in apr.load(again).items():
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == tensors[name].tobytes()


@given(TENSORS, METADATA, st.randoms())
def test_two_saves_are_the_same_bytes(tmp_path, tensors, metadata, random):
    names = list(tensors)
    random.shuffle(names)
    apr.save(tensors, tmp_path / "1.apr", metadata)
    apr.save({name: tensors[name] for name in names}, tmp_path / "2.apr", metadata)
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()


def outcome(path):
    """Whether it opens; everything that a reader can ask for then works."""
    try:
        file = apr.load(path)
    except apr.AprError:
        return False
    try:
        metadata = json.dumps(file.metadata)
    except apr.FormatError:  # of their own bytes, which opening does not look at
        metadata = None
    checked = {check.name: check.passed for check in file.verify().checks}
    assert checked["metadata"] == (metadata is not None)
    for name in file:
        try:
            values = file[name]
        except apr.FormatError:  # an empty head
            continue
        assert tuple(values.shape) == file.info(name).shape
        values.to(dtype=values.dtype, copy=True)  # every byte is there
    return True


MAGICS = [b"APR\0", b"APR1", b"APR2", b"APRN", b"APRN\2\0", b"APRN\1\0", b"GGUF", b"PK\3\4", b"\x80\4", b""]


@given(st.sampled_from(MAGICS), st.binary(max_size=300))
@example(b"", b"")
def test_any_bytes_open_or_raise_apr_error(tmp_path, magic, rest):
    path = tmp_path / "any.apr"
    path.write_bytes(magic + rest)
    opened = outcome(path)
    assert apr.verify(path).opened == opened
    assert main(["verify", str(path)]) in {0, 4, 5}


EDGES = [0, 1, 2, 8, 9, 12, 14, 30, 63, 64, 65, 127, 128, 129, 255]


@given(
    TENSORS,
    METADATA,
    st.lists(st.tuples(st.integers(0, 700), st.sampled_from(EDGES) | st.integers(0, 255)), max_size=4),
    st.integers(-70, 70),
)
def test_a_damaged_file_with_right_checksums_opens_or_raises_apr_error(
    tmp_path, tensors, metadata, changes, longer
):
    path = tmp_path / "m.apr"
    apr.save(tensors, path, metadata)
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    content = content[:longer] if longer < 0 else content + bytes(longer)
    path.write_bytes(testing.with_right_checksums(bytes(content)))
    opened = outcome(path)
    assert apr.verify(path).opened == opened


@given(testing.apr_files(), st.data())
def test_any_single_byte_flipped_is_detected(path, data):
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="byte")
    content[at] ^= data.draw(st.integers(1, 255), label="bits")
    path.write_bytes(content)
    assert not apr.verify(path).ok
    with pytest.raises(apr.AprError):
        apr.load(path, verify="full")


@given(testing.damaged_files())
def test_damaged_files_open_or_raise_apr_error_and_are_never_sound(damaged):
    opened = outcome(damaged.path)
    report = apr.verify(damaged.path)
    assert (report.opened, report.ok) == (opened, False)
    assert main(["verify", str(damaged.path)]) in {4, 5}


@given(testing.apr_files(), st.integers(1, 10**6))
def test_a_file_cut_short_anywhere_is_detected(path, cut):
    content = path.read_bytes()
    size = cut % len(content)
    assume(size != len(content) - 4)  # without its footer: as some old writers left their files
    path.write_bytes(content[:size])
    with pytest.raises(apr.TruncatedError):
        apr.load(path)

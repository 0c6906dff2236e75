"""apr.load: damaged files raise typed errors, unusual files open, and OS errors keep their class."""

import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from tests.container.bad_files import CASES, EMBEDDING, GOOD, HEAD, LEGAL, OF_METADATA
from tests.container.forged import Entry, forge

import apr
from apr.cli import main

DATA = Path(__file__).parents[1] / "fixtures"
# With metadata of two bytes the index starts at byte 128; an entry named by one byte and of rank 1 is
# name size 128, name 130, dtype 131, ndim 132, dims 133, offset 141, size 149, next entry 157.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("depth", ["structure", "full"])
def test_a_damaged_file_raises_a_typed_error_with_tensor_and_offset(depth, case, tmp_path):
    content, kind, tensor, offset, word = CASES[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    if case in OF_METADATA and depth == "structure":
        file = apr.load(path)
        act = lambda: file.metadata  # noqa: E731
    else:
        act = lambda: apr.load(path, verify=depth)  # noqa: E731
    with pytest.raises(apr.AprError) as caught:
        act()
    error = caught.value
    assert type(error).__name__ == kind
    assert (error.path, error.tensor, error.offset) == (str(path), tensor, offset)
    assert word in str(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", ["gguf", "safetensors"])
def test_a_file_of_a_convertible_format_names_apr_convert(case, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(CASES[case][0])
    with pytest.raises(apr.UnsupportedError, match="apr convert"):
        apr.load(path)


def test_errors_of_the_operating_system_keep_their_class(tmp_path):
    for act in (apr.load, apr.verify, apr.inspect):
        with pytest.raises(FileNotFoundError) as caught:
            act(tmp_path / "gone.apr")
        assert caught.value.filename == str(tmp_path / "gone.apr")
        with pytest.raises(IsADirectoryError):
            act(tmp_path)
        with pytest.raises(OSError, match="regular"):
            act("/dev/null")


def test_a_file_cut_short_anywhere_is_truncated(tmp_path):
    path = tmp_path / "cut.apr"
    without_footer = len(GOOD) - 4
    for size in set(range(len(GOOD))) - {without_footer}:
        path.write_bytes(GOOD[:size])
        with pytest.raises(apr.TruncatedError) as caught:
            apr.load(path)
        assert caught.value.offset == size
    path.write_bytes(GOOD[:without_footer])  # as some old writers left their files
    assert apr.load(path).footer is None


@pytest.mark.parametrize("case", LEGAL)
def test_an_unusual_but_valid_file_is_read_completely(case, tmp_path):
    content, names = LEGAL[case]
    path = tmp_path / "odd.apr"
    path.write_bytes(content)
    with apr.load(path, verify="full") as file:
        assert list(file) == names
        for name in names:
            assert tuple(file[name].shape) == file.info(name).shape
    assert apr.verify(path).ok


@pytest.mark.parametrize("shape", [(4,), (2, 2), (4, 1)])
def test_an_empty_head_is_tied_only_to_an_embedding_of_its_shape(shape, tmp_path):
    path = tmp_path / "tied.apr"
    path.write_bytes(forge(Entry(HEAD, dims=(2, 2), size=0), Entry(EMBEDDING, dims=shape)))
    file = apr.load(path)
    fits = shape == (2, 2)
    assert apr.verify(path).ok == fits
    if fits:
        assert file["lm_head.weight"].data_ptr() == file["model.embed_tokens.weight"].data_ptr()
        return
    for access in (file.__getitem__, file.numpy, file.slice):
        with pytest.raises(apr.FormatError) as caught:
            access("lm_head.weight")
        assert (caught.value.tensor, caught.value.offset) == (
            "lm_head.weight",
            file.info("lm_head.weight").offset,
        )


def test_the_base_of_the_forged_files_is_valid(tmp_path):
    """The base of every case above opens: each is refused for the one field that lies."""
    path = tmp_path / "good.apr"
    path.write_bytes(GOOD)
    assert apr.verify(path).ok
    assert zlib.crc32(GOOD[:-4]) == apr.load(path).footer


def test_a_file_larger_than_memory_opens_and_its_last_bytes_are_read(tmp_path):
    path = tmp_path / "holes.apr"
    size = 1 << 38  # 256 GiB of holes
    content = forge(Entry(dtype=7, dims=(size,), size=size), body=b"")
    head = content[:-4]
    with path.open("wb") as file:
        file.write(head)
        try:
            file.truncate(len(head) + size)
        except OSError as error:
            pytest.skip(f"no file of {size} bytes here: {error}")
    opened = apr.load(path)
    assert opened.numpy("a")[-1] == 0
    assert opened.slice("a")[size - 3 :].tolist() == [0, 0, 0]
    assert opened["a"].shape == (size,)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.apr")
    for act in (apr.load, apr.verify, apr.inspect):
        with pytest.raises(OSError, match="regular"):
            act(tmp_path / "pipe.apr")
    with pytest.raises(OSError, match="regular"):
        apr.save({}, tmp_path / "pipe.apr")


def test_a_link_to_itself_is_an_os_error(tmp_path, capsys):
    (tmp_path / "loop.apr").symlink_to("loop.apr")
    for act in (apr.load, apr.verify, lambda path: apr.save({}, path)):
        with pytest.raises(OSError, match="symbolic links"):
            act(tmp_path / "loop.apr")
    assert main(["inspect", str(tmp_path / "loop.apr")]) == 7
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_path_that_is_not_utf8_is_read_written_and_shown(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\n\x1b.apr")
    apr.save({"a": np.ones(3)}, path)
    assert apr.load(path)["a"].tolist() == [1, 1, 1]
    path.write_bytes(b"APR\1")
    with pytest.raises(apr.AprError) as caught:
        apr.load(path)
    assert caught.value.path == str(path)
    for damaged in (path, path.with_suffix(".gone")):
        command = [sys.executable, "-m", "apr", "inspect", damaged]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == (4 if damaged == path else 3)
        for line in (done.stderr.removesuffix(b"\n"), str(caught.value).encode()):
            assert b"\n" not in line
            assert b"\x1b" not in line


def test_errors_survive_a_process_boundary(tmp_path):
    (tmp_path / "bad.apr").write_bytes(b"APR\0")
    with pytest.raises(apr.TruncatedError) as caught:
        apr.load(tmp_path / "bad.apr")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.offset) == (apr.TruncatedError, str(caught.value), 4)


def test_an_unknown_verify_argument_is_refused(tmp_path):
    with pytest.raises(ValueError, match="structure"):
        apr.load(tmp_path / "m.apr", verify="everything")

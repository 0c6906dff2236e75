"""A seal has checksums of every file and tensor; a changed bit is found, and its tensor named."""

import json
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.formats.models import FILES, IMPORTED, copied, failed, flip, places, sharded

import apr
from apr.errors import RefusedError
from apr.formats.seal import SEAL, read_seal
from apr.held import held


@pytest.mark.parametrize("name", FILES)
def test_checksums_are_zlibs(name, tmp_path):
    path = copied(name, tmp_path)
    sealed = apr.seal(path).files[path.name]
    content = path.read_bytes()
    assert (sealed.size, sealed.crc32) == (len(content), zlib.crc32(content))
    inside = bytearray(len(content))
    assert sealed.tensors.keys() == places(path).keys()
    for tensor, (offset, size) in places(path).items():
        record = sealed.tensors[tensor]
        assert (record.offset, record.size) == (offset, size)
        assert record.crc32 == zlib.crc32(content[offset : offset + size])
        inside[offset : offset + size] = b"\1" * size
    rest = bytes(byte for byte, covered in zip(content, inside, strict=True) if not covered)
    assert sealed.rest_crc32 == zlib.crc32(rest)
    assert read_seal(tmp_path / SEAL).files == {path.name: sealed}


def test_a_sealed_file_that_is_no_model_is_checked_by_itself(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    apr.seal(path)
    assert apr.verify(path).ok
    path.write_text("[]")
    assert not apr.verify(path).ok


@pytest.mark.parametrize("name", FILES)
@given(st.data())
def test_any_flipped_bit_is_found_and_its_tensor_named(name, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("sealed")
    path = copied(name, directory)
    apr.seal(path)
    where = places(path)
    at = data.draw(st.integers(0, path.stat().st_size - 1), label="byte")
    flip(path, at, data.draw(st.integers(0, 7), label="bit"))
    report = apr.verify(path)
    assert not report.ok
    hit = [tensor for tensor, (offset, size) in where.items() if offset <= at < offset + size]
    found = failed(report, "seal")
    assert [check.tensor for check in found] == (hit or [None])
    if hit:
        assert found[0].offset == where[hit[0]][0]
        assert hit[0] in found[0].detail
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", FILES)
def test_commands_seal_and_name_the_tensor_that_changed(name, tmp_path, run):
    path = copied(name, tmp_path)
    code, out, err = run("seal", path)
    assert (code, err) == (0, "")
    assert str(tmp_path / SEAL) in out
    code, out, _ = run("verify", path)
    assert code == 0
    assert "ok  seal" in out
    assert "not be verified" not in out
    tensor, (offset, size) = max(places(path).items(), key=lambda item: item[1][1])
    flip(path, offset + size - 1)
    code, out, _ = run("verify", path)
    assert code == 5
    assert any("FAILED" in line and tensor in line for line in out.splitlines())


def test_a_change_of_the_header_of_an_apr_file_is_found_although_its_own_checksum_is_corrected(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({"w": np.ones(9, np.float32)}, path, {"rope_theta": 10000})
    apr.seal(path)
    before = read_seal(tmp_path / SEAL).files["m.apr"]
    apr.save({"w": np.ones(9, np.float32)}, path, {"rope_theta": 10001})
    content = path.read_bytes()
    # Every file that ends with its own CRC32 has this one.
    assert before.crc32 == zlib.crc32(content) == 0x2144DF1C
    assert before.size == len(content)
    (check,) = failed(apr.verify(path))
    assert (check.name, check.tensor) == ("seal", None)
    assert "header" in check.detail


def test_a_directory_is_sealed_with_all_its_files(tmp_path, run):
    directory = tmp_path / "hf"
    shutil.copytree(IMPORTED / "hf_llama_tied", directory, copy_function=shutil.copyfile)
    (directory / ".hidden").touch()
    (directory / "deeper").mkdir()
    (directory / "deeper" / "m.bin").touch()
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    sealed = apr.seal(directory)
    assert sealed.files.keys() == names
    assert not sealed.files["config.json"].tensors
    report = apr.verify(directory)
    assert report.ok
    assert {check.passed for check in report.checks} == {True}
    flip(directory / "tokenizer.json", 100)
    (check,) = failed(apr.verify(directory))
    assert "tokenizer.json" in check.detail
    # The model's own file is still fine.
    assert apr.verify(directory / "model.safetensors").ok
    (directory / "tokenizer.json").unlink()
    (check,) = failed(apr.verify(directory))
    assert "missing" in check.detail
    (directory / "new.txt").touch()
    code, out, _ = run("verify", directory)
    assert code == 5
    assert "new.txt is not in" in out


def test_an_index_is_sealed_with_its_files(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "other.txt").touch()
    assert apr.seal(index).files.keys() == {
        index.name,
        *(path.name for path in tmp_path.glob("*.safetensors")),
    }
    assert apr.verify(index).ok
    part = tmp_path / "model-00002-of-00002.safetensors"
    flip(part, places(part)["model.layers.1.w1"][0])
    (check,) = failed(apr.verify(index))
    assert check.tensor == "model.layers.1.w1"
    assert part.name in check.detail


def test_a_seal_keeps_the_records_of_other_files(tmp_path):
    one, two = copied(FILES[0], tmp_path), copied(FILES[2], tmp_path)
    apr.seal(one)
    apr.seal(two)
    assert read_seal(tmp_path / SEAL).files.keys() == {one.name, two.name}
    # The directory has several models, and the seal itself stands for all of them.
    for path in (tmp_path / SEAL, tmp_path):
        assert apr.verify(path).ok
    flip(two, 4000)
    assert apr.verify(one).ok
    assert failed(apr.verify(tmp_path / SEAL))


def test_a_file_that_is_not_in_the_seal_is_not_called_verified(tmp_path):
    one, two = copied(FILES[1], tmp_path), copied(FILES[2], tmp_path)
    apr.seal(one)
    report = apr.verify(two)
    assert report.ok
    assert [check.passed for check in report.checks if check.name in {"seal", "checksum"}] == [None, None]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_size_is_found(name, tmp_path):
    path = copied(name, tmp_path)
    apr.seal(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    report = apr.verify(path)
    assert not report.opened
    (check,) = failed(report, "seal")
    assert check.offset == size - 1


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_not_sealed(name, tmp_path, run):
    path = copied(name, tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    code, _, err = run("seal", path)
    assert code == 4
    assert str(path) in err
    assert not (tmp_path / SEAL).exists()


def test_an_apr_file_whose_own_checksum_is_wrong_is_not_sealed(tmp_path):
    path = copied(FILES[0], tmp_path)
    flip(path, path.stat().st_size - 100)
    with pytest.raises(apr.ChecksumError) as caught:
        apr.seal(path)
    assert caught.value.path == str(path)


def test_older_forms_are_sealed_as_files(tmp_path):
    for name in ("v1_zstd.apr", "json_lz4.apr"):
        matches = list((IMPORTED.parent / "aprender-0.2x").glob("*.apr"))
        assert matches, name
    for source in matches:
        path = tmp_path / source.name
        shutil.copyfile(source, path)
        apr.seal(path)
        assert apr.verify(path).ok
        with apr.load(path) as file:
            located = file.form.startswith("APR v2") or file.form == "APR1 JSON"
        assert bool(read_seal(tmp_path / SEAL).files[path.name].tensors) == located
        flip(path, path.stat().st_size // 2)
        assert failed(apr.verify(path), "seal")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "JSON"),
        (b"[]", "format"),
        (b'{"format": "apr-seal", "version": 2}', "version"),
        (b'{"format": "apr-seal", "version": 1, "files": {"../x": {}}}', "name"),
        (b'{"format": "apr-seal", "version": 1, "files": {"x": {"tensors": {}}}}', "size"),
        (
            b'{"format": "apr-seal", "version": 1, "files": {"x": {"tensors": {}, "size": 1, "crc32": 7}}}',
            "crc32",
        ),
    ],
)
def test_a_damaged_seal_is_a_failed_check_and_not_replaced(content, word, tmp_path, run):
    path = copied(FILES[2], tmp_path)
    (tmp_path / SEAL).write_bytes(content)
    (check,) = failed(apr.verify(path))
    assert check.name == "seal"
    assert word in check.detail
    assert run("verify", path)[0] == 5
    assert run("verify", tmp_path / SEAL)[0] == 4
    with pytest.raises(apr.AprError) as caught:
        apr.seal(path)
    assert caught.value.path == str(tmp_path / SEAL)
    assert (tmp_path / SEAL).read_bytes() == content


def test_tensors_of_a_seal_that_overlap_are_refused(tmp_path):
    path = copied(FILES[2], tmp_path)
    apr.seal(path)
    content = json.loads((tmp_path / SEAL).read_text())
    tensors = content["files"][path.name]["tensors"]
    next(iter(tensors.values()))["offset"] += 1
    (tmp_path / SEAL).write_text(json.dumps(content))
    (check,) = failed(apr.verify(path))
    assert "overlap" in check.detail


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["files", "m.gguf", "size", "crc32", "rest_crc32", "tensors", "offset"]),
                inner,
            )
        ),
    )
)
def test_any_seal_is_read_or_an_apr_error(tmp_path, files):
    path = tmp_path / SEAL
    path.write_text(json.dumps({"format": "apr-seal", "version": 1, "files": files}))
    try:
        read_seal(path)
    except apr.AprError as error:
        assert error.path == str(path)


def test_missing_paths_and_empty_directories_exit_3(tmp_path, run):
    assert run("seal", tmp_path / "gone.apr")[0] == 3
    assert run("seal", tmp_path)[0] == 3
    assert run("seal")[0] == 2


def test_json_lists_what_was_sealed(tmp_path, run):
    paths = [copied(name, tmp_path) for name in FILES]
    code, out, _ = run("seal", "--json", *paths)
    rows = json.loads(out)["sealed"]
    assert code == 0
    assert [row["files"] for row in rows] == [[path.name] for path in paths]
    assert [row["size_bytes"] for row in rows] == [path.stat().st_size for path in paths]


def test_two_writers_of_a_seal_do_not_lose_records(tmp_path):
    path = copied(FILES[0], tmp_path)
    with held(tmp_path, "another process", "wait"), pytest.raises(RefusedError, match="another process"):
        apr.seal(path)
    assert not (tmp_path / SEAL).exists()


def test_progress_ends_at_the_number_of_bytes_and_an_exception_stops_the_work(tmp_path):
    path = tmp_path / "m.safetensors"
    size = 1 << 36
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    calls = []

    def enough(done, total):
        calls.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apr.seal(path, on_progress=enough)
    ((done, total),) = calls
    assert 0 < done < total == path.stat().st_size
    assert not (tmp_path / SEAL).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_old_seal(number, tmp_path):
    path = copied(FILES[0], tmp_path)
    apr.seal(path)
    before = (tmp_path / SEAL).read_bytes()
    code = f"""
import os, sys, apr
apr.seal(sys.argv[1], on_progress=lambda done, total: os.kill(os.getpid(), {int(number)}))
"""
    big = tmp_path / "big.bin"
    with big.open("wb") as file:
        file.truncate(1 << 36)
    done = subprocess.run([sys.executable, "-c", code, big], capture_output=True, check=False)
    assert done.returncode in {-number, 130}
    assert (tmp_path / SEAL).read_bytes() == before
    assert {entry.name for entry in Path(tmp_path).iterdir()} == {path.name, "big.bin", SEAL}

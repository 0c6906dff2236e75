"""GGUF files of any architecture are listed, read and described; damaged ones are one clear error."""

import json

import numpy as np
import pytest
from tests.formats.models import FAMILIES, IMPORTED, failed
from tests.gguf.models import write_gguf

import apr
from apr.formats.open import open_model


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_the_gguf_packages_own(name):
    import gguf

    path = IMPORTED / f"{name}.gguf"
    reader = gguf.GGUFReader(path)
    with open_model(path) as file:
        assert list(file) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            info = file.info(tensor.name)
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert info.dtype == tensor.tensor_type.name.lower()
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(file.numpy(tensor.name).astype(np.float32), expected)
            count = expected.size
            for start, stop in [(0, count), (1, count), (count // 3, count // 2), (count - 1, count)]:
                part = file.slice(tensor.name).flat(start, stop).astype(np.float32)
                assert np.array_equal(part, expected.reshape(-1)[start:stop])


def test_an_architecture_that_is_not_trained_is_listed_and_described(tmp_path, run):
    path = write_gguf(
        tmp_path / "m.gguf",
        "bert",
        tensors=[("odd.weight", np.arange(512, dtype=np.float32).reshape(2, 256))],
        block_count=7,
    )
    facts = apr.inspect(path)
    assert (facts["format"], facts["version"], facts["architecture"]) == ("GGUF", "3", "bert")
    assert (facts["num_layers"], facts["num_heads"], facts["hidden_size"]) == (7, 4, 256)
    assert facts["param_count"] == 512
    code, out, _ = run("tensors", path, "--stats", "--json")
    (row,) = json.loads(out)["tensors"]
    assert (code, row["name"], row["shape"], row["max"]) == (0, "odd.weight", [2, 256], 511)
    assert apr.diff(path, path).same
    assert run("verify", path)[0] == 0


def test_values_of_a_big_endian_file_are_not_read(tmp_path):
    import gguf

    path = write_gguf(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    assert apr.verify(path).ok
    with open_model(path) as file, pytest.raises(apr.UnsupportedError, match="big-endian"):
        file.numpy("token_embd.weight")


def test_json_of_keys_that_are_not_numbers_stays_json(tmp_path, run):
    path = write_gguf(tmp_path / "m.gguf", **{"rope.freq_base": float("nan")})
    facts = json.loads(run("inspect", "--json", path)[1], parse_constant=pytest.fail)
    assert facts["metadata"]["llama.rope.freq_base"] is None


def _moved(tmp_path, change):
    """A GGUF file of two tensors, whose second offset, size or type was changed."""
    path = write_gguf(
        tmp_path / "m.gguf",
        tensors=[
            ("token_embd.weight", np.ones((8, 256), np.float32)),
            ("output_norm.weight", np.ones(256, np.float32)),
        ],
    )
    content = bytearray(path.read_bytes())
    # The entry of the second tensor: name, number of dimensions (u32), dimension (u64), type (u32), offset.
    after = content.index(b"output_norm.weight") + len(b"output_norm.weight")
    change(content, after)
    path.write_bytes(content)
    return path


def _u64(at, value):
    def change(content, after):
        content[after + at : after + at + 8] = value.to_bytes(8, "little")

    return change


def _u32(at, value):
    def change(content, after):
        content[after + at : after + at + 4] = value.to_bytes(4, "little")

    return change


@pytest.mark.parametrize(
    ("change", "word", "kind"),
    [
        (_u64(16, 32), "before it ends", apr.FormatError),
        (_u64(16, 1 << 40), "before it ends", apr.FormatError),
        (_u64(4, 1 << 40), "file ends at byte", apr.TruncatedError),
        (_u64(4, 257), "file ends at byte", apr.TruncatedError),
        (_u32(12, 999), "unknown number 999", apr.FormatError),
        (_u32(12, 31), "unknown number 31", apr.FormatError),
    ],
    ids=["overlap", "gap", "too large", "one value too many", "unknown type", "removed type"],
)
def test_a_wrong_entry_names_its_tensor(change, word, kind, tmp_path, run):
    path = _moved(tmp_path, change)
    with pytest.raises(kind, match=word) as caught:
        open_model(path)
    assert (caught.value.path, caught.value.tensor) == (str(path), "output_norm.weight")
    (check,) = failed(apr.verify(path))
    assert (check.tensor, check.offset) == ("output_norm.weight", caught.value.offset)
    code, out, err = run("verify", path)
    assert (code, out, len(err.splitlines())) == (4, "", 1)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    import gguf

    blocks = np.zeros((8, 144), np.uint8)
    path = write_gguf(
        tmp_path / "m.gguf", tensors=[("token_embd.weight", blocks, gguf.GGMLQuantizationType.Q4_K)]
    )
    content = bytearray(path.read_bytes())
    after = content.index(b"token_embd.weight") + len(b"token_embd.weight")
    content[after + 4 : after + 12] = (250).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(apr.FormatError, match="Q4_K"):
        open_model(path)


def test_a_file_that_was_cut_short_names_the_tensor(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes((IMPORTED / "llama_tied.gguf").read_bytes()[:-100])
    with pytest.raises(apr.TruncatedError) as caught:
        open_model(path)
    assert caught.value.tensor is not None
    assert caught.value.offset == path.stat().st_size


def test_arrays_nested_beyond_any_depth_are_one_error(tmp_path):
    content = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    content += (1).to_bytes(8, "little") + b"a" + (9).to_bytes(4, "little")
    content += ((9).to_bytes(4, "little") + (1).to_bytes(8, "little")) * 5000
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(apr.FormatError, match="invalid GGUF"):
        open_model(tmp_path / "m.gguf")


def test_bytes_after_the_last_tensor_are_shown(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes((IMPORTED / "llama_tied.gguf").read_bytes() + bytes(1000))
    report = apr.verify(path)
    assert report.ok
    assert any(check.name == "end" and check.passed is None for check in report.checks)

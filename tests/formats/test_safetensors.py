"""safetensors files of every dtype are listed, read and described."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from tests.formats.models import IMPORTED, safetensors_bytes

import apr
from apr.formats.open import open_model

# Every dtype of the format with a NumPy dtype, beside those that .apr has.
VALUES = {
    "BOOL": np.array([True, False]),
    "I16": np.array([-(2**15), 2**15 - 1], np.int16),
    "U16": np.array([0, 2**16 - 1], np.uint16),
    "U32": np.array([0, 2**32 - 1], np.uint32),
    "U64": np.array([0, 2**64 - 1], np.uint64),
    "F8_E4M3": np.array([-1.5, 448], ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.array([-1.5, 57344], ml_dtypes.float8_e5m2),
    "F8_E8M0": np.array([1, 2.0**100], ml_dtypes.float8_e8m0fnu),
}


@pytest.mark.parametrize("dtype", VALUES)
def test_dtypes_that_apr_does_not_store_are_listed_with_statistics(dtype, tmp_path, run):
    values = VALUES[dtype]
    path = tmp_path / "m.safetensors"
    entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, values.nbytes]}
    path.write_bytes(safetensors_bytes({"w": entry}, values.tobytes()))
    with open_model(path) as file:
        assert file.info("w").dtype == dtype.lower()
        assert file.numpy("w").tobytes() == values.tobytes()
    code, out, _ = run("tensors", path, "--stats", "--json")
    (row,) = json.loads(out)["tensors"]
    assert (code, row["nan"], float(row["max"])) == (0, 0, float(values.astype("f8").max()))
    assert apr.diff(path, path).same
    assert apr.verify(path).ok


def test_packed_dtypes_are_listed_but_not_read(tmp_path, run):
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        safetensors_bytes({"w": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}, b"ab")
    )
    assert apr.verify(path).ok
    assert run("tensors", path)[0] == 0
    with pytest.raises(apr.UnsupportedError, match="F4") as caught:
        apr.diff(path, path)
    assert caught.value.tensor == "w"


def test_a_directory_is_described_by_its_configuration(tmp_path, run):
    config = json.loads((IMPORTED / "hf_llama_tied" / "config.json").read_text())
    facts = apr.inspect(IMPORTED / "hf_llama_tied")
    assert (facts["format"], facts["version"], facts["kind"]) == ("safetensors", None, "model")
    assert (facts["valid"], facts["checksum_valid"]) == (True, None)
    assert (facts["architecture"], facts["hidden_size"]) == ("llama", config["hidden_size"])
    assert (facts["num_layers"], facts["num_heads"]) == (
        config["num_hidden_layers"],
        config["num_attention_heads"],
    )
    assert facts["metadata"]["hf_config"] == config
    # A file alone has no configuration.
    shutil.copyfile(IMPORTED / "hf_llama_tied" / "model.safetensors", tmp_path / "m.safetensors")
    alone = apr.inspect(tmp_path / "m.safetensors")
    assert alone["architecture"] is None
    assert alone["tensor_count"] == facts["tensor_count"]
    code, out, err = run("inspect", IMPORTED / "hf_llama_tied")
    assert (code, err) == (0, "")
    assert "apr seal" in out


def test_the_packages_own_files_have_its_values():
    from safetensors.numpy import load_file

    path = IMPORTED / "hf_qwen2_untied" / "model.safetensors"
    expected = load_file(path)
    with open_model(path) as file:
        assert set(file) == set(expected)
        for name, values in expected.items():
            assert file.numpy(name).tobytes() == values.tobytes()
            assert file.info(name).shape == values.shape

"""A model of any format is opened by its bytes, and a directory by what is in it."""

import os
import shutil

import numpy as np
import pytest
from tests.formats.models import FILES, IMPORTED, sharded

import apr
from apr.formats.open import find, open_model


@pytest.mark.parametrize(("name", "form"), list(zip(FILES, ["APR v2", "safetensors", "GGUF"], strict=True)))
def test_the_bytes_decide_the_format_and_not_the_name(name, form, tmp_path):
    for suffix in (".apr", ".safetensors", ".gguf", ".bin"):
        path = tmp_path / f"m{suffix}"
        shutil.copyfile(IMPORTED / name, path)
        with open_model(path) as file:
            assert file.form == form
            assert len(file) >= 20
            assert file.nbytes == path.stat().st_size


@pytest.mark.parametrize(("suffix", "word"), [(".safetensors", "safetensors"), (".gguf", "GGUF")])
def test_the_name_decides_where_the_bytes_are_damaged(suffix, word, tmp_path):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(apr.FormatError, match=word) as caught:
        open_model(path)
    assert caught.value.path == str(path)


def test_a_directory_stands_for_the_model_that_transformers_would_load(tmp_path):
    index = sharded(tmp_path)
    assert find(tmp_path) == index
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "consolidated.safetensors").touch()
    assert find(tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "mine.apr").touch()
    assert find(tmp_path) == tmp_path / "mine.apr"


def test_a_directory_of_several_models_or_of_none_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="has no"):
        find(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert find(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(IsADirectoryError, match="several"):
        find(tmp_path)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_key_for_a_format_without_keys_is_refused(name):
    with pytest.raises(apr.DecryptionError, match="not encrypted"):
        open_model(IMPORTED / name, password="secret")


def test_an_index_lists_the_tensors_of_all_files(tmp_path, run):
    index = sharded(tmp_path)
    with open_model(index) as file:
        assert file.is_sharded
        assert len(file.file_paths) == 2
        assert file.path_of("model.layers.1.w2") == str(tmp_path / "model-00002-of-00002.safetensors")
        assert np.array_equal(file.numpy("model.layers.1.w2"), np.full((3, 4), 3, np.float32))
        with pytest.raises(KeyError):
            file.numpy("gone")
    code, out, _ = run("tensors", index, "--filter", "*.1.*")
    assert (code, len(out.splitlines())) == (0, 4)
    assert "model-00002-of-00002.safetensors" in out


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify", "seal"])
@pytest.mark.parametrize("name", ["pipe.apr", "pipe.safetensors", "pipe.gguf"])
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(command, name, tmp_path, run):
    os.mkfifo(tmp_path / name)
    code, out, err = run(command, tmp_path / name)
    assert (code, out) == (7, "")
    assert str(tmp_path / name) in err

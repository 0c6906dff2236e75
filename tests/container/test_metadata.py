"""Metadata are read on first use, cannot be changed, and do not keep anyone from the tensors."""

import os

import pytest
from tests.container.forged import Entry, forge

import apr
from apr.cli import main

NO_JSON = forge(Entry(b"a"), Entry(b"model.embed_tokens.weight"), metadata=b'{"a":\xff}')


def test_invalid_metadata_do_not_affect_tensors(tmp_path):
    """Neither opening nor any way to a tensor reads the metadata: those of a tokenizer are 12 MB."""
    import safetensors.torch  # noqa: F401 (apr.torch has its signatures)

    import apr.torch as apr_torch

    path = tmp_path / "bad.apr"
    path.write_bytes(NO_JSON)
    file = apr.load(path)
    assert list(dict(file)) == ["a", "model.embed_tokens.weight"]
    assert file["a"].shape == file.numpy("a").shape == file.slice("a")[:].shape == (4,)
    assert list(file.to_torch()) == list(apr_torch.load_file(path)) == list(file)
    with apr.safe_open(path, "pt") as opened:
        assert opened.get_tensor("a").shape == opened.get_slice("a")[:].shape == (4,)
    assert main(["tensors", str(path)]) == 0
    for _ in range(2):
        with pytest.raises(apr.FormatError) as caught:
            assert file.metadata
        assert caught.value.offset == 64 + len(b'{"a":')


def test_metadata_of_a_file_that_was_cut_short_after_opening_are_truncated(tmp_path):
    path = tmp_path / "cut.apr"
    path.write_bytes(forge(Entry(b"a"), metadata=b'{"a":"' + b"x" * 1000 + b'"}'))
    file = apr.load(path)
    os.truncate(path, 500)
    with pytest.raises(apr.TruncatedError) as caught:
        assert file.metadata
    assert caught.value.offset == 500


def test_the_last_of_duplicate_metadata_keys_wins(tmp_path):
    path = tmp_path / "twice.apr"
    path.write_bytes(forge(metadata=b'{"license":null,"name":"x","license":"MIT"}'))
    assert apr.load(path).metadata == {"license": "MIT", "name": "x"}

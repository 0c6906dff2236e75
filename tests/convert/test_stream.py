"""Tensors are read, rounded and written in chunks."""

import ml_dtypes
import numpy as np
import safetensors.torch
import torch

import apr
from apr.convert import ConvertOptions, convert, stream


def test_tensors_longer_than_a_chunk_are_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 25)
    model = {"a": torch.rand(31, 7), "b": torch.rand(1000).bfloat16(), "c": torch.tensor(3.0)}
    safetensors.torch.save_file(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr", ConvertOptions(dtype="f16"))
    with apr.load(tmp_path / "b.apr") as file:
        for name, values in model.items():
            assert torch.equal(file[name], values.half())
    convert(tmp_path / "b.apr", tmp_path / "c.safetensors")
    assert all(
        torch.equal(values, model[name].half())
        for name, values in safetensors.torch.load_file(tmp_path / "c.safetensors").items()
    )


def test_bf16_rounds_to_nearest_even(tmp_path):
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, np.nan, -np.inf, 1e-45, 3e38], "<f4")
    safetensors.torch.save_file({"a": torch.from_numpy(values)}, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.apr", ConvertOptions(dtype="bf16"))
    with apr.load(tmp_path / "b.apr") as file:
        expected = torch.from_numpy(values).bfloat16()
        assert torch.equal(file["a"].nan_to_num(7), expected.nan_to_num(7))
        assert file["a"].isnan().tolist() == [False, False, True, False, False, False]
        assert file.numpy("a").dtype == ml_dtypes.bfloat16

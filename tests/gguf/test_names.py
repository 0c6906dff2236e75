"""Tensors of a converted GGUF file have transformers' names, values and order of rows."""

import numpy as np
import pytest
from tests.gguf.models import DATA, MODELS, QUANTIZED, convert, write_gguf


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_is_transformers_own_bit_for_bit(model, tmp_path):
    from safetensors.numpy import load_file

    import apr

    assert convert(DATA / f"{model}.gguf", tmp_path / "m.apr") == 0
    expected = load_file(DATA / f"hf_{model}" / "model.safetensors")
    with apr.load(tmp_path / "m.apr", verify="full") as file:
        assert set(file) == set(expected)
        for name, values in expected.items():
            assert file.numpy(name).dtype == values.dtype
            assert np.array_equal(file.numpy(name).view(np.uint8), values.view(np.uint8)), name


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_values_are_the_gguf_packages_own_bit_for_bit(kind, tmp_path):
    import gguf

    import apr

    quantization = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, size=(256, QUANTIZED[kind]), dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # some scales are NaN
        expected = gguf.dequantize(blocks, quantization)
    path = write_gguf(
        tmp_path / "q.gguf",
        tensors=[
            ("token_embd.weight", blocks, quantization),
            ("blk.0.ffn_up.weight", blocks, quantization),
            ("blk.0.attn_q.weight", blocks, quantization),
        ],
    )
    with np.errstate(invalid="ignore"):
        assert convert(path, tmp_path / "q.apr", "--allow-mismatch") == 0
    with apr.load(tmp_path / "q.apr") as file:
        assert file.info("model.layers.0.mlp.up_proj.weight").dtype == "f32"
        up = file.numpy("model.layers.0.mlp.up_proj.weight")
        q = file.numpy("model.layers.0.self_attn.q_proj.weight")
        assert up.tobytes() == expected.tobytes()
        for head in range(4):
            for pair in range(32):
                for half in range(2):
                    ours, theirs = q[head * 64 + half * 32 + pair], expected[head * 64 + 2 * pair + half]
                    assert ours.tobytes() == theirs.tobytes()


def test_permuted_rows_come_back():
    from apr.gguf.names import permute, unpermute

    rows = np.arange(24 * 5).reshape(24, 5)
    assert np.array_equal(unpermute(permute(rows, 3), 3), rows)
    # Row 2i + j of a head is transformers' row j * 4 + i.
    assert permute(rows, 3)[:, 0].reshape(3, 8)[1].tolist() == [5 * (8 + r) for r in (0, 4, 1, 5, 2, 6, 3, 7)]


def test_each_gguf_name_comes_back():
    from apr.gguf.names import gguf_name, hf_name

    for name in ("token_embd.weight", "output.weight", "blk.11.attn_q.bias", "blk.0.ffn_norm.weight"):
        assert gguf_name(hf_name(name)) == name
    assert gguf_name("model.layers.0.mlp.experts.0.weight") is None

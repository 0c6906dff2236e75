"""Quantized tensors come as float32, bit for bit what the ones who defined the blocks make of them."""

import numpy as np
import pytest
from tests.container.forged import Entry, forge

import apr
from apr.container.save import TensorSpec, write

K_QUANTS = {"q4_k": ("Q4_K", 12, 144), "q6_k": ("Q6_K", 14, 210)}


def blocks_of(kind, count):
    """Random blocks, all scales finite."""
    rng = np.random.default_rng(7)
    _, _, size = K_QUANTS[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scales = rng.standard_normal((count, 2)).astype(np.float16).view(np.uint8)
    if kind == "q4_k":
        blocks[:, :4] = scales
    else:
        blocks[:, -2:] = scales[:, :2]
    return blocks


def same_bits(values, expected):
    return np.array_equal(values.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (3, 512), (5, 896), (2, 200), (200, 1000)])
def test_k_quants_equal_those_of_the_gguf_package(kind, rows, columns, tmp_path):
    import gguf

    stored = blocks_of(kind, rows * -(-columns // 256))
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[K_QUANTS[kind][0]])
    expected = expected.reshape(rows, -1)[:, :columns]
    path = tmp_path / "k.apr"
    write(path, None, [TensorSpec("k", kind, (rows, columns))], lambda _: stored)
    with apr.load(path, verify="full") as file:
        assert "QUANTIZED" in str(file.header.flags.name)
        assert same_bits(file.numpy("k"), expected)
        assert same_bits(file["k"].numpy(), expected)
        assert bytes(file.raw("k")) == stored.tobytes()


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_in_the_flat_layout_are_recognized_by_size(kind, tmp_path):
    import gguf

    name, dtype, _ = K_QUANTS[kind]
    stored = blocks_of(kind, 3)  # [2, 300] padded would be four
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name]).reshape(-1)[:600].reshape(2, 300)
    body = stored.tobytes()
    path = tmp_path / "flat.apr"
    path.write_bytes(
        forge(Entry(dtype=dtype, dims=(2, 300), size=len(body)), body=body + bytes(-len(body) % 64))
    )
    with apr.load(path, verify="full") as file:
        assert same_bits(file.numpy("a"), expected)
        with pytest.raises(ValueError, match="flat"):
            apr.Quantized(kind, (2, 300), file.raw("a"))
        with pytest.raises(ValueError, match="bytes"):  # what only looks like it
            apr.Quantized(kind, (2, 300), bytes(len(body) - 1))


@pytest.mark.parametrize("kind", ["q4", "q8", "q4_k", "q6_k"])
def test_a_quantized_tensor_may_be_empty(kind, tmp_path):
    path = tmp_path / "empty.apr"
    stored = np.zeros(4 if kind == "q8" else 0, np.uint8)  # q8 has its scale all the same
    write(path, None, [TensorSpec("w", kind, (0, 256))], lambda _: stored)
    with apr.load(path, verify="full") as file:
        assert file["w"].shape == file.numpy("w").shape == (0, 256)
        assert str(file["w"].dtype) == "torch.float32"


def q4(scale, nibbles):
    low, high = np.asarray(nibbles[::2], np.uint8), np.asarray(nibbles[1::2], np.uint8)
    return np.float16(scale).tobytes() + (low | high << 4).tobytes()


def test_q4_has_the_low_nibble_first_and_stores_a_partial_block_whole(tmp_path):
    nibbles = list(range(16)) * 2
    stored = np.frombuffer(q4(0.5, nibbles) + q4(-2.0, nibbles), np.uint8)
    path = tmp_path / "q4.apr"
    write(path, None, [TensorSpec("w", "q4", (5, 7))], lambda _: stored)
    expected = [(n - 8) * 0.5 for n in nibbles] + [(n - 8) * -2.0 for n in nibbles[:3]]
    with apr.load(path) as file:
        assert file["w"].flatten().tolist() == expected
        assert file["w"].shape == (5, 7)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 2.0**-20, 0.0])
def test_a_q4_scale_that_is_not_a_normal_number_counts_as_zero(scale, tmp_path):
    path = tmp_path / "q4.apr"
    stored = np.frombuffer(q4(scale, list(range(16)) * 2), np.uint8)
    write(path, None, [TensorSpec("w", "q4", (32,))], lambda _: stored)
    with apr.load(path) as file:
        assert not file["w"].any()


def test_q8_is_one_scale_and_a_signed_byte_each(tmp_path):
    values = np.arange(-128, 128, dtype=np.int8)
    stored = np.frombuffer(np.float32(0.1).tobytes() + values.tobytes(), np.uint8)
    path = tmp_path / "q8.apr"
    write(path, None, [TensorSpec("w", "q8", (2, 128))], lambda _: stored)
    with apr.load(path) as file:
        assert same_bits(file.numpy("w").reshape(-1), values.astype(np.float32) * np.float32(0.1))


def test_an_empty_head_may_stand_for_a_quantized_embedding(tmp_path):
    embedding = q4(1.0, list(range(16)) * 2)
    path = tmp_path / "tied.apr"
    path.write_bytes(
        forge(
            Entry(b"lm_head.weight", dtype=128, dims=(4, 8), size=0),
            Entry(b"model.embed_tokens.weight", dtype=128, dims=(4, 8), size=18, offset=0),
            body=embedding.ljust(64, b"\0"),
        )
    )
    with apr.load(path, verify="full") as file:
        assert file["lm_head.weight"].equal(file["model.embed_tokens.weight"])
        assert same_bits(file.numpy("lm_head.weight"), file.numpy("model.embed_tokens.weight"))

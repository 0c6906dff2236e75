"""`apr convert MODEL.gguf OUT.apr`: options, output, exit codes, memory."""

import json

import numpy as np
import pytest
from tests.convert.memory import memory_of_conversions
from tests.gguf.models import DATA, QUANTIZED, convert, write_gguf


def test_the_dtype_can_be_chosen(tmp_path):
    import torch

    import apr

    convert(DATA / "qwen2_tied.gguf", tmp_path / "f32.apr")
    convert(DATA / "qwen2_tied.gguf", tmp_path / "bf16.apr", "--dtype", "bf16")
    with apr.load(tmp_path / "f32.apr") as full, apr.load(tmp_path / "bf16.apr") as half:
        for name in full:
            assert half.info(name).dtype == "bf16"
            assert torch.equal(half[name], full[name].to(torch.bfloat16))


def test_two_conversions_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        convert(DATA / "llama_tied.gguf", tmp_path / f"{name}.apr")
    assert (tmp_path / "one.apr").read_bytes() == (tmp_path / "two.apr").read_bytes()


def test_json_is_alone_on_standard_output(tmp_path, capsys):
    convert(DATA / "llama_tied.gguf", tmp_path / "m.apr", "--json")
    made = json.loads(capsys.readouterr().out)
    assert (made["tensors"], made["size_bytes"]) == (20, (tmp_path / "m.apr").stat().st_size)


def test_a_missing_file_exits_3(tmp_path, capsys):
    assert convert(tmp_path / "gone.gguf", tmp_path / "m.apr") == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_format_is_refused_by_name(tmp_path, capsys):
    source = tmp_path / "m.bin"
    source.write_bytes(b"PK\3\4 a checkpoint of PyTorch")
    assert convert(source, tmp_path / "m.apr") == 4
    error = capsys.readouterr().err
    assert str(source) in error
    assert "PyTorch" in error


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_k_quants_are_kept_on_request(kind, tmp_path):
    import gguf

    import apr

    quantization = gguf.GGMLQuantizationType[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (256, 3 * QUANTIZED[kind]), np.uint8)
    vector = np.ones(768, np.float32)
    path = write_gguf(
        tmp_path / "q.gguf",
        embedding_length=768,
        **{"rope.dimension_count": 192},
        tensors=[
            ("token_embd.weight", blocks, quantization),
            ("blk.0.attn_q.weight", blocks, quantization),
            ("output_norm.weight", vector),
        ],
    )
    assert convert(path, tmp_path / "kept.apr", "--keep-quantized", "--allow-mismatch") == 0
    with np.errstate(invalid="ignore"):
        assert convert(path, tmp_path / "plain.apr", "--allow-mismatch") == 0
    with apr.load(tmp_path / "kept.apr", verify="full") as kept, apr.load(tmp_path / "plain.apr") as plain:
        assert kept.info("model.embed_tokens.weight").dtype == kind.lower()
        assert bytes(kept.raw("model.embed_tokens.weight")) == blocks.tobytes()
        assert kept.header.flags & 32  # QUANTIZED
        for name in plain:
            assert kept.numpy(name).tobytes() == plain.numpy(name).tobytes(), name


@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [
        ("F16", 256),
        ("Q4_K", 48),  # 340 MB of float32
        pytest.param("F16", 4096, marks=pytest.mark.long),
        pytest.param("IQ2_S", 256, marks=pytest.mark.long),
    ],
)
def test_memory_does_not_grow_with_the_file(kind, megabytes, tmp_path):
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    values, nbytes = gguf.GGML_QUANT_SIZES[quantization]
    rows = megabytes * 2**20 // (256 // values * nbytes)
    path = write_gguf(tmp_path / "m.gguf", tensors=[("token_embd.weight", (rows, 256), quantization)])
    assert path.stat().st_size > megabytes * 1_000_000
    grown = memory_of_conversions(path, tmp_path / "m.apr")
    assert grown < 250_000, f"{grown} kB"

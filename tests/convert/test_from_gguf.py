"""`apr convert MODEL.gguf OUT.apr`: the values, the names, the metadata, the refusals."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.convert.memory import memory_of_conversions

from apr.cli import main

DATA = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
MODELS = ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied"]
# (type, bytes of one row of 256 values)
QUANTIZED = {"Q4_0": 144, "Q4_1": 160, "Q5_0": 176, "Q8_0": 272, "Q4_K": 144, "Q6_K": 210}


EMBEDDING = [("token_embd.weight", np.ones((8, 256), np.float32))]


def convert(source: Path, target: Path, *flags: str) -> int:
    return main(["convert", str(source), str(target), *flags])


def write_gguf(path, architecture="llama", tensors=None, endianess=None, **changes):
    """A one-layer GGUF model of 256 dimensions; keywords change its keys, None drops one.

    `tensors` are (name, values or bytes or a shape, GGML type where it does not follow).
    """
    import gguf

    keys = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 64,
    } | changes
    writer = gguf.GGUFWriter(str(path), architecture, endianess=endianess or gguf.GGUFEndian.LITTLE)
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    holes = 0
    for name, values, *kind in tensors or EMBEDDING:
        if isinstance(values, tuple):  # a shape: zeros that take no space
            of_block, nbytes = gguf.GGML_QUANT_SIZES[kind[0]]
            holes += prod(values) // of_block * nbytes
            writer.add_tensor_info(name, values, np.dtype("<f4"), holes, raw_dtype=kind[0])
        else:
            writer.add_tensor(name, values, raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if holes:
        writer.write_ti_data_to_file()
    else:
        writer.write_tensors_to_file()
    writer.close()
    if holes:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + holes + 64)
    return path


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


@pytest.mark.parametrize("model", MODELS)
def test_sizes_and_tokenizer_are_kept(model, tmp_path):
    import apr

    convert(DATA / f"{model}.gguf", tmp_path / "m.apr")
    config = json.loads((DATA / f"hf_{model}" / "config.json").read_text())
    tokenizer = json.loads((DATA / f"hf_{model}" / "tokenizer.json").read_text())
    with apr.load(tmp_path / "m.apr") as file:
        metadata = file.metadata
    for ours, theirs in {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "vocab_size": "vocab_size",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "rms_norm_eps",
        "hf_model_type": "model_type",
        "tie_word_embeddings": "tie_word_embeddings",
    }.items():
        assert metadata[ours] == config[theirs], ours
    assert metadata["hf_architecture"] == config["architectures"][0]
    assert metadata["rope_type"] == 2
    vocabulary = tokenizer["model"]["vocab"]
    assert [vocabulary.get(token, i) for i, token in enumerate(metadata["tokenizer.vocabulary"])] == list(
        range(512)
    )
    assert [tuple(m.split(" ")) for m in metadata["tokenizer.merges"]] == [
        tuple(m) for m in tokenizer["model"]["merges"]
    ]


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
        assert convert(path, tmp_path / "q.apr") == 0
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


@pytest.mark.parametrize(
    ("architecture", "changes", "says"),
    [
        ("bert", {}, "'bert'"),
        ("llama", {"block_count": None}, "llama.block_count is missing"),
        ("llama", {"rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ("llama", {"expert_count": 8}, "mixture of experts"),
        ("llama", {"vocab_size": 9}, "token_embd.weight has 8 rows"),
        ("llama", {"rope.dimension_count": 32}, "partial rotary"),
        ("llama", {"tensors": [("output.weight", np.ones((8, 256), np.float32))]}, "token_embd.weight"),
        ("llama", {"tensors": [("rope_freqs.weight", np.ones(32, np.float32))]}, "rope_freqs.weight"),
        ("llama", {"tensors": [*EMBEDDING, ("blk.0.ffn_up.weight", np.ones((8, 256), np.int8))]}, "type I8"),
        ("llama", {"attention.head_count": 0}, "llama.attention.head_count"),
        ("llama", {"block_count": 1.5}, "llama.block_count"),
        ("llama", {"attention.layer_norm_rms_epsilon": float("nan")}, "missing"),
        ("llama", {"rope.freq_base": float("inf")}, "missing"),
    ],
)
def test_unsupported_models_are_refused_in_one_line(architecture, changes, says, tmp_path, capsys):
    source = write_gguf(tmp_path / "m.gguf", architecture, **changes)
    assert convert(source, tmp_path / "m.apr") == 4
    error = capsys.readouterr().err
    assert says in error
    assert str(source) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "m.apr").exists()


def test_a_missing_file_exits_3(tmp_path, capsys):
    assert convert(tmp_path / "gone.gguf", tmp_path / "m.apr") == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("size", [0, 3, 4, 20, 200, 5000, 30000])
def test_a_truncated_file_exits_4_and_leaves_nothing(size, tmp_path, capsys):
    source = tmp_path / "cut.gguf"
    source.write_bytes((DATA / "llama_tied.gguf").read_bytes()[:size])
    assert convert(source, tmp_path / "m.apr") == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["cut.gguf"]


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
    assert convert(path, tmp_path / "kept.apr", "--keep-quantized") == 0
    with np.errstate(invalid="ignore"):
        assert convert(path, tmp_path / "plain.apr") == 0
    with apr.load(tmp_path / "kept.apr", verify="full") as kept, apr.load(tmp_path / "plain.apr") as plain:
        assert kept.info("model.embed_tokens.weight").dtype == kind.lower()
        assert bytes(kept.raw("model.embed_tokens.weight")) == blocks.tobytes()
        assert kept.header.flags & 32  # QUANTIZED
        for name in plain:
            assert kept.numpy(name).tobytes() == plain.numpy(name).tobytes(), name


def test_every_type_that_the_package_dequantizes_is_converted(tmp_path):
    import gguf

    import apr

    rng = np.random.default_rng(1)
    read = []
    for kind in gguf.GGMLQuantizationType:
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (4, 256 // size * nbytes), np.uint8)
        try:
            with np.errstate(all="ignore"):
                expected = gguf.dequantize(blocks, kind)
        except NotImplementedError:
            continue
        if size == 1:
            continue  # not quantized
        path = write_gguf(tmp_path / "m.gguf", tensors=[("token_embd.weight", blocks, kind)])
        with np.errstate(all="ignore"):
            assert convert(path, tmp_path / "m.apr") == 0
        with apr.load(tmp_path / "m.apr") as file:
            assert file.numpy("model.embed_tokens.weight").tobytes() == expected.astype("<f4").tobytes(), kind
        read.append(kind.name)
    assert len(read) >= 20


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


def test_a_big_endian_file_is_refused(tmp_path, capsys):
    import gguf

    source = write_gguf(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    assert convert(source, tmp_path / "m.apr") == 4
    assert "big-endian" in capsys.readouterr().err
    assert not (tmp_path / "m.apr").exists()


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_rope_factors_of_llama_3_become_rope_scaling(factor, head_dim, tmp_path):
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    import apr
    from apr.model import ModelConfig

    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_theta": 500000.0, **scaling})
    plain = 1 / 500000.0 ** (torch.arange(0, head_dim, 2) / head_dim)
    factors = (plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]).numpy()
    keys = {"rope.freq_base": 500000.0, "rope.dimension_count": head_dim, "attention.key_length": head_dim}
    source = write_gguf(
        tmp_path / "m.gguf", tensors=[*EMBEDDING, ("rope_freqs.weight", factors.astype("<f4"))], **keys
    )
    assert convert(source, tmp_path / "m.apr") == 0
    with apr.load(tmp_path / "m.apr") as file:
        assert list(file) == ["model.embed_tokens.weight"]
        assert file.metadata["rope_scaling"] == scaling
        assert ModelConfig.from_metadata(file.metadata).rope_scaling.factor == factor
    factors[3] *= 1.01
    source = write_gguf(
        tmp_path / "m.gguf", tensors=[*EMBEDDING, ("rope_freqs.weight", factors.astype("<f4"))], **keys
    )
    assert convert(source, tmp_path / "m.apr") == 4


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])), min_size=1, max_size=4),
    st.sampled_from([64, 2000, 20_000]),
)
def test_any_damage_is_converted_or_refused_in_one_line(tmp_path, changes, within):
    import apr
    from apr.convert import convert

    content = bytearray((DATA / "llama_tied.gguf").read_bytes())
    for where, byte in changes:
        content[int(where * within)] = byte
    (tmp_path / "m.gguf").write_bytes(content)
    try:
        convert(tmp_path / "m.gguf", tmp_path / "m.apr")
    except apr.AprError as error:
        assert str(tmp_path / "m.gguf") in str(error)
    else:
        assert apr.verify(tmp_path / "m.apr").ok

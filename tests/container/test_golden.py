"""Files that other programs wrote: every byte, every value, every key as their own reader sees them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import apr

DATA = Path(__file__).parents[1] / "fixtures"
WRITTEN = DATA / "aprender-0.72"
OLD = DATA / "aprender-0.2x"
IMPORTED = DATA / "imported-0.72"
EXPECTED = [
    path
    for path in sorted(WRITTEN.glob("*.expected.json"))
    if path.name not in {"row_padded_k_quants.expected.json", "v1.expected.json"}  # in tests of their own
]
MODELS = ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied"]


def sha256(values):
    return hashlib.sha256(values).hexdigest()


def expected_of(name):
    return json.loads((WRITTEN / f"{name}.expected.json").read_text())


@pytest.mark.parametrize("name", [path.name.removesuffix(".expected.json") for path in EXPECTED])
def test_a_file_is_read_as_by_its_writers_own_reader(name):
    expected = expected_of(name)
    path = WRITTEN / expected["file"]
    with apr.load(path, verify="full") as file:
        metadata = dict(file.metadata)
        if "rms_norm_eps" in metadata:  # which that reader holds as float32
            metadata["rms_norm_eps"] = float(np.float32(metadata["rms_norm_eps"]))
        assert metadata == expected["metadata"]
        assert (file.header.flags, file.header.data_offset) == (expected["flags"], expected["data_offset"])
        assert list(file) == [tensor["name"] for tensor in expected["tensors"]]
        for tensor in expected["tensors"]:
            info = file.info(tensor["name"])
            assert (info.dtype, list(info.shape), info.nbytes) == (
                tensor["dtype"],
                tensor["shape"],
                tensor["nbytes"],
            )
            assert sha256(file.raw(info.name)) == tensor["sha256"], info.name
            if "f32_sha256" in tensor and not info.tied:
                values = file.numpy(info.name).astype(np.float32)
                assert sha256(values.tobytes()) == tensor["f32_sha256"], info.name
                assert sha256(file[info.name].float().numpy().tobytes()) == tensor["f32_sha256"], info.name


def test_rows_of_k_quants_are_padded_to_whole_blocks():
    expected = expected_of("row_padded_k_quants")
    with apr.load(WRITTEN / "row_padded_k_quants.apr") as file:
        for name in ("q4_k", "q6_k"):
            assert file.info(name).nbytes == expected[name]["nbytes"]
            assert sha256(file.numpy(name).tobytes()) == expected[name]["f32_sha256"]
            assert file[name][1, :8].tolist() == expected[name]["f32_row1_head"]


def test_the_old_id_of_bf16_is_read():
    with apr.load(WRITTEN / "bf16_old_id.apr", verify="full") as file:
        (name,) = file
        assert file.info(name).dtype == "bf16"
        assert file.numpy(name).astype(np.float32).tobytes() == file[name].float().numpy().tobytes()


def test_a_compression_flag_over_uncompressed_data_is_ignored():
    with apr.load(WRITTEN / "lz4_flag_raw_body.apr") as file:
        assert file.header.flags.name == "LZ4_COMPRESSED|LAYOUT_ROW_MAJOR"
        (name,) = file
        assert file[name].isfinite().all()


def test_an_empty_head_is_the_embedding():
    with apr.load(WRITTEN / "qwen2_empty_head_f16.apr") as file:
        head, embedding = file["lm_head.weight"], file["model.embed_tokens.weight"]
        assert file.info("lm_head.weight").tied
        assert head.shape == embedding.shape
        assert head.data_ptr() == embedding.data_ptr()
        assert np.shares_memory(file.numpy("lm_head.weight"), file.numpy("model.embed_tokens.weight"))
        assert apr.inspect(file.path)["param_count"] == sum(
            t.numel() for n, t in file.items() if n != "lm_head.weight"
        )


@pytest.mark.parametrize("version", ["0.22.0", "0.24.1"])
def test_v2_files_under_older_magics_are_read(version):
    expected = next(
        entry
        for entry in json.loads((OLD / "old.expected.json").read_text())
        if entry["file"] == f"v2_{version}.apr"
    )
    with apr.load(OLD / expected["file"]) as file:
        assert set(file) == set(expected["tensors"])
        for name, tensor in expected["tensors"].items():
            assert list(file[name].shape) == tensor["shape"]
            assert file[name].float().flatten().tolist() == tensor["values"]


@pytest.mark.parametrize("model", MODELS)
def test_imports_from_safetensors_have_the_same_values(model):
    from safetensors.numpy import load_file

    source = load_file(IMPORTED / f"hf_{model}" / "model.safetensors")
    with apr.load(IMPORTED / f"from_safetensors_{model}.apr", verify="full") as file:
        assert set(source) <= set(file)
        for name, values in source.items():
            assert file.numpy(name).tobytes() == values.tobytes(), name
        assert set(file) - set(source) <= {"lm_head.weight"}
        assert file.numpy("lm_head.weight").shape == source["model.embed_tokens.weight"].shape


@pytest.mark.parametrize("model", MODELS)
def test_imports_from_gguf_have_the_same_values(model):
    import gguf

    source = {t.name: t.data for t in gguf.GGUFReader(IMPORTED / f"{model}.gguf").tensors}
    with apr.load(IMPORTED / f"from_gguf_{model}.apr", verify="full") as file:
        # A tied head is a copy of the embedding, so it adds no value of its own.
        assert {sha256(file.raw(name)) for name in file} == {
            sha256(data.tobytes()) for data in source.values()
        }


@pytest.mark.parametrize("model", ["llama_untied", "qwen2_tied"])
@pytest.mark.parametrize(("kind", "dtype", "steps"), [("int8", "q8", 127), ("int4", "q4", 7)])
def test_quantized_imports_are_close_to_their_source(model, kind, dtype, steps):
    with (
        apr.load(IMPORTED / f"from_safetensors_{model}.apr") as plain,
        apr.load(IMPORTED / f"from_safetensors_{model}_{kind}.apr", verify="full") as file,
    ):
        assert set(file) == set(plain)
        assert dtype in {file.info(name).dtype for name in file}
        for name, values in plain.items():
            # Half a step of the scale, with room for the rounding of an f16 scale.
            assert (file[name] - values).abs().max() <= 0.52 * values.abs().max() / steps, name


@pytest.mark.parametrize("model", ["llama_untied", "qwen2_tied"])
def test_f16_imports_are_their_source_rounded(model):
    with (
        apr.load(IMPORTED / f"from_safetensors_{model}.apr") as plain,
        apr.load(IMPORTED / f"from_safetensors_{model}_fp16.apr", verify="full") as file,
    ):
        for name, values in plain.items():
            assert file.info(name).dtype == "f16"
            assert file[name].equal(values.half()), name

"""apr.diff between formats: by transformers' names, in transformers' order of rows."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.formats.models import FAMILIES, IMPORTED, sharded
from tests.gguf.models import write_gguf

import apr
from apr.convert import convert


def versions(name):
    """The same model in every format, also as the ecosystem's importer wrote it with GGUF's names."""
    return [
        IMPORTED / f"{name}.gguf",
        IMPORTED / f"hf_{name}",
        IMPORTED / f"hf_{name}" / "model.safetensors",
        IMPORTED / f"from_gguf_{name}.apr",
        IMPORTED / f"from_safetensors_{name}.apr",
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_the_same_in_every_format(name):
    paths = versions(name)
    for a in paths:
        for b in paths:
            # Two .apr files with transformers' names are compared with all of their metadata.
            if a != b and not (name.startswith("qwen2") and a.suffix == b.suffix == ".apr"):
                report = apr.diff(a, b)
                assert report.same, (a, b, str(report))
                assert report.compared >= len(load_file(paths[2]))


@pytest.mark.parametrize("name", ["llama_untied", "qwen2_tied"])
def test_a_changed_value_is_found_under_the_name_of_either_side(name, tmp_path):
    tensors = load_file(IMPORTED / f"hf_{name}" / "model.safetensors")
    before = tensors["model.layers.1.self_attn.q_proj.weight"]
    changed = before.copy()
    changed[5, 3] += 0.5
    save_file(tensors | {"model.layers.1.self_attn.q_proj.weight": changed}, tmp_path / "m.safetensors")
    for other in (IMPORTED / f"{name}.gguf", IMPORTED / f"from_gguf_{name}.apr"):
        report = apr.diff(other, tmp_path / "m.safetensors")
        (tensor,) = report.tensors
        assert tensor.name == "model.layers.1.self_attn.q_proj.weight"
        assert tensor.differing == 1
        assert tensor.largest == pytest.approx(0.5, rel=1e-3)
        assert tensor.relative == pytest.approx(0.5 / np.linalg.norm(before.astype("f8")), rel=1e-3)
        (layer,) = report.layers
        assert (layer.name, layer.tensors, layer.worst) == ("model.layers.1", 1, tensor.name)


def test_layers_have_the_largest_and_the_relative_difference_of_their_tensors(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"model.layers.{n}.{part}" for n in (0, 1, 10) for part in ("a.weight", "b.weight")]
    a = {name: rng.standard_normal((70, 30)).astype(np.float32) for name in names}
    b = {name: values + rng.standard_normal(values.shape).astype(np.float32) for name, values in a.items()}
    b["model.layers.1.a.weight"] = a["model.layers.1.a.weight"]
    a["model.norm.weight"], b["model.norm.weight"] = np.ones(3, "f4"), np.full(3, 2, "f4")
    save_file(a, tmp_path / "a.safetensors")
    apr.save(b, tmp_path / "b.apr")
    report = apr.diff(tmp_path / "a.safetensors", tmp_path / "b.apr")
    expected = {}
    for name, values in a.items():
        wide = values.astype("f8")
        distance = np.abs(wide - b[name])
        if distance.any():
            relative = np.linalg.norm(distance) / np.linalg.norm(wide)
            layer = name.rpartition(".")[0].rpartition(".")[0] if ".layers." in name else name
            expected.setdefault(layer, []).append((distance.max(), relative, name))
    assert {layer.name for layer in report.layers} == expected.keys()
    for layer in report.layers:
        rows = expected[layer.name]
        assert layer.tensors == len(rows)
        assert layer.largest == pytest.approx(max(row[0] for row in rows))
        assert layer.relative == pytest.approx(max(row[1] for row in rows))
        assert layer.worst == max(rows, key=lambda row: row[1])[2]
    json.dumps(report.to_dict(), allow_nan=False)


def test_between_formats_values_decide_and_not_dtypes(tmp_path):
    values = np.array([1, 2.5, -3], ml_dtypes.bfloat16)
    apr.save({"w": values.astype(np.float32)}, tmp_path / "m.apr")
    save_file({"w": values}, tmp_path / "m.safetensors")
    assert apr.diff(tmp_path / "m.apr", tmp_path / "m.safetensors").same
    apr.save({"w": values}, tmp_path / "b.apr")
    assert not apr.diff(tmp_path / "m.apr", tmp_path / "b.apr").same


def test_quantized_gguf_values_are_compared_dequantized(tmp_path):
    import gguf

    wide = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    path = write_gguf(
        tmp_path / "q.gguf",
        tensors=[
            (
                "token_embd.weight",
                gguf.quantize(wide, gguf.GGMLQuantizationType.Q8_0),
                gguf.GGMLQuantizationType.Q8_0,
            )
        ],
    )
    save_file({"model.embed_tokens.weight": wide}, tmp_path / "m.safetensors")
    report = apr.diff(tmp_path / "m.safetensors", path)
    (tensor,) = report.tensors
    expected = gguf.dequantize(
        gguf.quantize(wide, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    )
    assert tensor.dtype == ("f32", "q8_0")
    assert tensor.largest == pytest.approx(np.abs(wide - expected).max())
    assert tensor.relative == pytest.approx(np.linalg.norm(wide - expected) / np.linalg.norm(wide), rel=1e-5)
    assert apr.diff(tmp_path / "m.safetensors", path, atol=float(tensor.largest)).same


def test_a_wrong_configuration_is_a_difference(tmp_path):
    directory = tmp_path / "hf"
    shutil.copytree(IMPORTED / "hf_llama_tied", directory, copy_function=shutil.copyfile)
    assert apr.diff(directory, IMPORTED / "llama_tied.gguf").same
    config = json.loads((directory / "config.json").read_text())
    config |= {"rms_norm_eps": 0.5}
    (directory / "config.json").write_text(json.dumps(config))
    report = apr.diff(directory, IMPORTED / "llama_tied.gguf")
    assert report.changed.keys() == {"rms_norm_eps"}
    assert report.changed["rms_norm_eps"][0] == 0.5


def test_a_file_that_does_not_describe_a_model_is_compared_without_metadata():
    path = IMPORTED / "hf_llama_tied" / "model.safetensors"
    report = apr.diff(path, IMPORTED / "llama_tied.gguf")
    assert report.same
    assert any("metadata" in note and str(path) in note for note in report.notes)


def test_a_stored_head_is_compared_with_the_embedding_that_the_other_side_ties_it_to(tmp_path):
    tensors = load_file(IMPORTED / "hf_llama_tied" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    embedding = tensors["model.embed_tokens.weight"]
    for head, same in ((embedding, True), (embedding * 2, False)):
        save_file(tensors | {"lm_head.weight": head.copy()}, tmp_path / "m.safetensors")
        report = apr.diff(tmp_path / "m.safetensors", IMPORTED / "llama_tied.gguf")
        assert report.same == same
        assert [tensor.name for tensor in report.tensors] == ([] if same else ["lm_head.weight"])


def test_training_state_is_left_out_between_formats(tmp_path):
    tensors = load_file(IMPORTED / "hf_llama_tied" / "model.safetensors")
    apr.save(tensors | {"__training__.step": np.ones(1, np.float32)}, tmp_path / "m.apr")
    assert apr.diff(tmp_path / "m.apr", IMPORTED / "hf_llama_tied" / "model.safetensors").same


def test_an_architecture_without_a_name_table_is_refused_by_name(tmp_path, run):
    path = write_gguf(tmp_path / "m.gguf", "bert")
    code, _, err = run("diff", path, IMPORTED / "hf_llama_tied")
    assert code == 4
    assert "bert" in err
    assert str(path) in err


def test_files_of_one_foreign_format_are_compared_by_stored_names(tmp_path):
    index = sharded(tmp_path)
    assert apr.diff(index, tmp_path).same
    parts = {}
    for path in tmp_path.glob("*.safetensors"):
        parts |= load_file(path)
    save_file(parts, tmp_path / "one.safetensors")
    assert apr.diff(index, tmp_path / "one.safetensors").same
    report = apr.diff(IMPORTED / "llama_tied.gguf", IMPORTED / "qwen2_untied.gguf")
    assert "output.weight" in report.only_in_b
    assert "blk.0.attn_q.bias" in report.only_in_b
    assert any(tensor.name.startswith("blk.") for tensor in report.tensors)


def test_a_conversion_can_be_checked_against_its_source(tmp_path, run):
    convert(IMPORTED / "llama_untied.gguf", tmp_path / "m.apr")
    code, out, err = run("diff", IMPORTED / "llama_untied.gguf", tmp_path / "m.apr")
    assert (code, err) == (0, "")
    assert "are the same" in out


def test_layers_are_printed_and_exit_5(run):
    a, b = IMPORTED / "qwen2_tied.gguf", IMPORTED / "hf_llama_tied"
    code, out, _ = run("diff", a, b)
    assert code == 5
    assert any(line.startswith("  = model.layers.0: ") for line in out.splitlines())
    code, out, _ = run("diff", a, b, "--json")
    assert json.loads(out) == json.loads(json.dumps(apr.diff(a, b).to_dict()))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granite", "olmo2", "phi3", "glm4", "smollm3"])
def test_families_are_the_same_in_a_directory_and_converted(family, tmp_path):
    from tests.model.tiny import transformers_model

    transformers_model(family).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.apr")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for a, b in [(tmp_path / "hf", tmp_path / "m.apr"), (tmp_path / "m.apr", tmp_path / "hf")]:
        report = apr.diff(a, b)
        assert report.same, str(report)
        assert report.compared >= len(tensors)
    # The last value of the last matrix, which is one of the parts of a fused one.
    name = [name for name in tensors if ".mlp." in name and "down" not in name][-1]
    tensors[name] = tensors[name].copy()
    tensors[name][-1, -1] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tensor,) = apr.diff(tmp_path / "m.apr", tmp_path / "hf").tensors
    assert (tensor.differing, round(tensor.largest, 5)) == (1, 1)
    assert tensor.name in apr.load(tmp_path / "m.apr")

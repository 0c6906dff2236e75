"""`apr convert MODEL.gguf OUT.apr`: options, output, exit codes, memory."""

import json

import numpy as np
import pytest
from tests.convert.memory import memory_of_conversions
from tests.convert.models import tiny
from tests.gguf.models import DATA, QUANTIZED, convert, with_keys, write_gguf

import apr
from apr.convert.check_gguf import run_llama_cpp


def test_the_dtype_can_be_chosen(tmp_path):
    import torch

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


def llama_cpp_predicts(path, prompt, first):
    """The most likely tokens after each prefix, with their log probabilities, as llama.cpp computes them."""
    import gguf

    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    plain = next(id_ for id_, token in enumerate(tokens) if token.isascii() and token.isalpha())
    child = run_llama_cpp(path, [prompt], [first], top=5, plain=plain, texts=[])
    child.check_returncode()
    return json.loads(child.stdout)["top"][0]


def check_logits_against_llama_cpp(path, tmp_path):
    """Convert a GGUF file, and compare the log probabilities of our decoder with those of llama.cpp."""
    import torch

    from apr.model import Decoder

    prompt = np.random.default_rng(0).integers(0, 512, 40).tolist()
    assert convert(path, tmp_path / "keys.apr") == 0
    with torch.no_grad():
        logprobs = Decoder.from_apr(tmp_path / "keys.apr")(torch.tensor([prompt]))[0].double().log_softmax(-1)
    for ours, theirs in zip(logprobs[23:], llama_cpp_predicts(path, prompt, 24), strict=True):
        for token, expected in theirs:
            # llama.cpp has a table of 65,536 entries for Gemma's gate.
            assert float(ours[token]) == pytest.approx(expected, abs=0.03 if "gemma" in path.name else 1e-3)


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
SCALINGS = {
    "the old key": {"rope.scale_linear": 4.0},
    "a factor without a type": {"rope.scaling.factor": 2.5},
    "both keys": {"rope.scale_linear": 4.0, "rope.scaling.factor": 2.5},
    "none": {"rope.scaling.type": "none", "rope.scale_linear": 4.0},
    "yarn": YARN,
    "yarn without its context": {**YARN, "rope.scaling.original_context_length": None},
    "yarn with a factor of cosines": {**YARN, "rope.scaling.attn_factor": 1.5},
    "yarn with the old key": {"rope.scaling.type": "yarn", "rope.scale_linear": 4.0},
}
FULL = {"sliding_window": None, "rope_scaling": None, "layer_types": ["full_attention"] * 4}
GEMMA = {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}
# Of each architecture, one model, and the key of the windows that this model has.
ARCHITECTURES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"rope_scaling": None}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "rope_scaling": None}),
    "granite": ("granite", {}),
    "phi3": ("phi3", {"sliding_window": None, "rope_parameters": None}),
    "exaone4": ("exaone4", FULL),
    "glm4": ("glm4", {}),
}


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory):
    """A function that returns a GGUF file of each architecture, written once."""
    made = {}

    def file(name):
        if name not in made:
            family, changes = ARCHITECTURES[name]
            directory = tmp_path_factory.mktemp(name)
            source = tiny(directory, family, **changes)
            assert convert(source, directory / f"{name}.gguf", "--no-check") == 0
            made[name] = directory / f"{name}.gguf"
        return made[name]

    return file


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scaling_is_what_llama_cpp_computes(scaling, gguf_of, tmp_path):
    changed = with_keys(gguf_of("llama"), tmp_path / "llama.gguf", **SCALINGS[scaling])
    check_logits_against_llama_cpp(changed, tmp_path)


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama"])
def test_the_old_key_of_linear_scaling_is_read_for_every_architecture(name, gguf_of, tmp_path):
    changed = with_keys(gguf_of(name), tmp_path / f"{name}.gguf", **{"rope.scale_linear": 4.0})
    check_logits_against_llama_cpp(changed, tmp_path)


# What llama.cpp reads without them, or does not read at all.
OPTIONAL = (
    "vocab_size",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.freq_base_swa",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_optional_keys_that_are_missing_have_llama_cpps_defaults(name, gguf_of, tmp_path):
    dropped = dict.fromkeys(OPTIONAL)
    if name == "glm4":
        dropped["rope.dimension_count"] = 8  # llama.cpp's default is the whole head
    changed = with_keys(gguf_of(name), tmp_path / f"{name}.gguf", **dropped)
    check_logits_against_llama_cpp(changed, tmp_path)


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("attention.head_count_kv", [2] * 4),
        ("attention.head_count", [4] * 4),
        ("feed_forward_length", [160] * 4),
    ],
)
def test_a_size_listed_for_every_layer_is_read(key, values, gguf_of, tmp_path):
    changed = with_keys(gguf_of("llama"), tmp_path / "llama.gguf", **{key: values})
    check_logits_against_llama_cpp(changed, tmp_path)
    assert apr.inspect(changed)["num_kv_heads"] == 2


@pytest.mark.parametrize(
    ("name", "keys", "code", "words"),
    [
        ("llama", {"attention.head_count_kv": [2, 4, 2, 2]}, 4, ["head_count_kv", "2, 4, 2, 2"]),
        ("llama", {"attention.head_count_kv": [2, 2]}, 4, ["head_count_kv", "2 entries for 4 layers"]),
        ("llama", {"embedding_length": [64] * 4}, 4, ["embedding_length", "64, 64"]),
        ("llama", {"rope.scaling.attn_factor": 1.5}, 4, ["attn_factor", "1.5"]),
        ("llama", {"rope.scale_linear": 2.0, "rope.scaling.attn_factor": 1.5}, 4, ["attn_factor"]),
        ("llama", {**YARN, "rope.scaling.yarn_beta_fast": 4.0}, 4, ["yarn_beta_fast", "4.0"]),
        ("llama", {**YARN, "rope.scaling.yarn_ext_factor": 0.5}, 4, ["yarn_ext_factor"]),
        ("llama", {**YARN, "rope.scaling.yarn_attn_factor": 0.5}, 4, ["yarn_attn_factor"]),
        ("llama", {**YARN, "rope.scaling.yarn_log_multiplier": 0.1}, 4, ["yarn_log_multiplier"]),
        ("llama", {"rope.scaling.alpha": 2.0}, 4, ["rope.scaling.alpha"]),
        ("llama", {"rope.scaling.invented": 2.0}, 4, ["rope.scaling.invented"]),
        ("llama", {"rope.dimension_sections": [8, 4, 4, 0]}, 4, ["dimension_sections"]),
        ("llama", {"rope.dimension_count_swa": 8}, 4, ["dimension_count_swa"]),
        ("llama", {"attention.scale": 0.5}, 4, ["llama.attention.scale"]),
        ("llama", {"attention.temperature_scale": 0.1}, 4, ["temperature_scale"]),
        ("llama", {"attention.clamp_kqv": 8.0}, 4, ["clamp_kqv"]),
        ("llama", {"attention.max_alibi_bias": 8.0}, 4, ["max_alibi_bias"]),
        ("llama", {"attention.causal": False}, 4, ["attention.causal"]),
        ("llama", {"logit_scale": 0.5}, 4, ["llama.logit_scale"]),
        ("llama", {"final_logit_softcapping": 30.0}, 4, ["final_logit_softcapping"]),
        ("gemma3", {"final_logit_softcapping": 30.0}, 4, ["final_logit_softcapping"]),
        ("gemma2", {"rope.freq_base_swa": 500.0}, 4, ["freq_base_swa"]),
        ("olmo3", {"rope.freq_base_swa": 500.0}, 4, ["freq_base_swa"]),
        ("granite", {"rope.scaling.finetuned": False}, 4, ["finetuned"]),
    ],
)
def test_keys_that_change_what_is_computed_are_refused_by_name(
    name, keys, code, words, gguf_of, tmp_path, capsys
):
    changed = with_keys(gguf_of(name), tmp_path / "m.gguf", **keys)
    capsys.readouterr()
    assert convert(changed, tmp_path / "m.apr") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert str(changed) in line
    assert all(word in line for word in words)
    assert not (tmp_path / "m.apr").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.finetuned": True},
        {"rope.scaling.finetuned": False},
        {"rope.scaling.attn_factor": 1.0},
        {"rope.scaling.yarn_log_multiplier": 0.0},
        {"rope.dimension_sections": [0, 0, 0, 0]},
        {"rope.dimension_count_swa": 16},
        {"logit_scale": 1.0},
        {"final_logit_softcapping": 0.0},
        {"attention.causal": True},
    ],
)
def test_keys_that_change_nothing_are_read(keys, gguf_of, tmp_path):
    changed = with_keys(gguf_of("llama"), tmp_path / "m.gguf", **keys)
    assert convert(changed, tmp_path / "m.apr") == 0


def test_a_factor_beside_llama_3s_factors_is_refused(tmp_path, capsys):
    from tests.convert.test_to_gguf import LLAMA3

    source = tiny(tmp_path, "llama", rope_parameters=LLAMA3)
    assert convert(source, tmp_path / "m.gguf", "--no-check") == 0
    changed = with_keys(tmp_path / "m.gguf", tmp_path / "n.gguf", **{"rope.scaling.factor": 2.0})
    assert convert(changed, tmp_path / "n.apr") == 4
    assert "rope_freqs.weight" in capsys.readouterr().err


@pytest.mark.usefixtures("llama_cpp")
def test_longrope_without_its_factor_of_cosines_has_none(tmp_path):
    from tests.convert.test_to_gguf import LONGROPE

    source = tiny(tmp_path, "phi3", sliding_window=None, rope_parameters=LONGROPE)
    assert convert(source, tmp_path / "m.gguf", "--no-check") == 0
    changed = with_keys(tmp_path / "m.gguf", tmp_path / "n.gguf", **{"rope.scaling.attn_factor": None})
    check_logits_against_llama_cpp(changed, tmp_path)

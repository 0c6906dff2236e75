"""Every parameter once, every tensor used, values that weights can have."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "fixtures"
FILE = DATA / "aprender-0.72" / "qwen2_untied_f32.apr"
BIASES = [f"model.layers.{n}.self_attn.{p}_proj.bias" for n in (0, 1) for p in "qkv"]


@pytest.fixture
def changed(tmp_path):
    """The file with tensors replaced, added, or (None) dropped, and metadata likewise."""

    def make(tensors=None, **metadata):
        import apr

        source = apr.load(FILE)
        values = {**source, **(tensors or {})}
        facts = {**source.metadata, **metadata}
        path = tmp_path / "changed.apr"
        apr.save(
            {k: v for k, v in values.items() if v is not None},
            path,
            {k: v for k, v in facts.items() if v is not None},
        )
        return path

    return make


def refusal(path):
    from apr.errors import WeightsError
    from apr.model import Decoder

    with pytest.raises(WeightsError) as error:
        Decoder.from_apr(path)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 6
    return str(error.value)


def test_missing_biases_are_named():
    text = refusal(DATA / "aprender-0.72" / "qwen2_biases_lost.apr")
    assert "(6)" in text
    assert all(name in text for name in BIASES)


def test_an_unexpected_tensor_is_named(changed):
    import torch

    assert "model.layers.2.mlp.up_proj.weight" in refusal(
        changed({"model.layers.2.mlp.up_proj.weight": torch.ones(3)})
    )


def test_training_state_is_ignored(changed):
    import torch

    from apr.model import Decoder

    Decoder.from_apr(changed({"__training__.optimizer.step": torch.tensor(3)}))


def test_a_parameter_under_two_names_is_refused(changed):
    import torch

    assert "model.norm.weight" in refusal(changed({"output_norm.weight": torch.ones(64)}))


def test_a_wrong_shape_is_reported_with_the_expected_one(changed):
    import torch

    text = refusal(changed({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 160)}))
    assert "model.layers.1.mlp.up_proj.weight" in text
    assert "[64, 160]" in text
    assert "[160, 64]" in text


def test_a_tied_head_that_differs_from_the_embedding_is_refused(changed):
    assert "lm_head.weight" in refusal(changed(tie_word_embeddings=True))


def test_a_bias_stored_as_a_row_fills_its_vector(changed):
    import torch

    import apr
    from apr.model import Decoder

    row = apr.load(FILE)[BIASES[0]].clone()[None]
    model = Decoder.from_apr(changed({BIASES[0]: row}))
    assert torch.equal(dict(model.named_parameters())[BIASES[0]], row[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(changed, value):
    import torch

    broken = torch.full((64,), 1.0)
    broken[5] = value
    text = refusal(changed({"model.norm.weight": broken}))
    assert "model.norm.weight" in text
    assert "1 of 64 values" in text


def test_bf16_bytes_labeled_f16_are_refused(changed):
    import torch

    import apr

    name = "model.layers.0.mlp.down_proj.weight"
    mistagged = apr.load(FILE)[name].to(torch.bfloat16).view(torch.float16)
    text = refusal(changed({name: mistagged}))
    assert name in text
    assert "labeled f16" in text


def test_f16_bytes_labeled_bf16_are_refused(changed):
    import torch

    import apr

    name = "model.layers.0.mlp.down_proj.weight"
    text = refusal(changed({name: apr.load(FILE)[name].to(torch.float16).view(torch.bfloat16)}))
    assert name in text
    assert "labeled bf16" in text


def test_an_embedding_of_zeros_is_refused(changed):
    import torch

    assert "zero" in refusal(changed({"model.embed_tokens.weight": torch.zeros(512, 64)}))


def test_integer_weights_are_refused(changed):
    import torch

    assert "int8" in refusal(changed({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0])
def test_real_weights_are_plausible_at_any_scale(scale):
    import torch

    from apr.model.fill import implausible

    normal = torch.randn(300, 200, generator=torch.Generator().manual_seed(3)) * scale
    sparse = normal * (torch.rand(300, 200, generator=torch.Generator().manual_seed(4)) < 0.1)
    for values in (normal, sparse, normal.half(), normal.bfloat16(), (normal / scale).round() * scale):
        assert implausible("w", values) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float64_weights_are_rounded_once(dtype, changed):
    import torch
    from tests.container.test_narrow import DTYPES, nearest

    import apr
    from apr.model import Decoder

    # Just above what float32 can tell from a tie.
    source = apr.load(FILE).to_torch(dtype=torch.float64)
    weights = {name: w.bfloat16().double() * (1 + 2.0**-8 + 2.0**-40) for name, w in source.items()}
    model = Decoder.from_apr(changed(weights), dtype=getattr(torch, dtype))
    numpy_dtype = DTYPES["f16" if dtype == "float16" else "bf16"][0]
    for name, parameter in model.named_parameters():
        expected = torch.from_numpy(nearest(weights[name].numpy(), numpy_dtype))
        assert parameter.detach().double().equal(expected), name


def test_a_weight_beyond_the_range_of_the_dtype_is_refused(changed):
    import torch

    import apr
    from apr.errors import WeightsError
    from apr.model import Decoder

    norm = apr.load(FILE)["model.norm.weight"].clone()
    norm[3] = 70000
    path = changed({"model.norm.weight": norm})
    assert Decoder.from_apr(path).model.norm.weight[3] == 70000
    with pytest.raises(WeightsError, match=r"changed\.apr.*model\.norm\.weight.*float16"):
        Decoder.from_apr(path, dtype=torch.float16)


def test_weights_of_eight_bits_are_read(changed):
    import torch

    import apr
    from apr.model import Decoder

    name = "model.layers.0.mlp.up_proj.weight"
    values = apr.load(FILE)[name].to(torch.float8_e4m3fn)
    model = Decoder.from_apr(changed({name: values}))
    assert model.get_parameter(name).equal(values.float())

"""Logits and gradients are transformers' own, on the ecosystem's files and on random models."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "fixtures"
REFERENCES = sorted(DATA.glob("*/*.logits.json"))


def files_of(reference: Path) -> list[Path]:
    """The .apr files that hold the weights of a NAME.logits.json."""
    name = reference.name.removesuffix(".logits.json")
    return [
        p
        for p in (
            reference.with_name(f"{start}{name}.apr") for start in ("", "from_gguf_", "from_safetensors_")
        )
        if p.exists()
    ]


CASES = [(reference, file) for reference in REFERENCES for file in files_of(reference)]


def test_every_reference_has_a_file():
    assert len(REFERENCES) == 7
    assert len(CASES) == 3 + 4 * 2


@pytest.mark.parametrize(("reference", "file"), CASES, ids=[file.stem for _, file in CASES])
def test_logits_and_gradients_of_the_ecosystems_files_match_transformers(reference, file):
    import torch
    import torch.nn.functional as F

    from apr.model import Decoder

    expected = json.loads(reference.read_text())
    model = Decoder.from_apr(file)
    ids = torch.tensor([expected["input_ids"]])
    logits = model(ids)
    loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()

    assert loss.item() == pytest.approx(expected["loss"], abs=1e-4)
    assert logits[0, -1, :16].tolist() == pytest.approx(expected["logits_last_first16"], abs=1e-4)
    assert logits[0].logsumexp(-1).tolist() == pytest.approx(expected["logits_row_logsumexp"], abs=1e-4)
    assert logits[0].argmax(-1).tolist() == expected["logits_row_argmax"]
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == expected["grad_norm_by_parameter"].keys()
    assert norms == pytest.approx(expected["grad_norm_by_parameter"], rel=1e-3, abs=1e-7)


def transformers_model(family: str, tied: bool, seed: int, **changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
    } | changes
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config, model = kinds[family]
    made = model(config(**settings)).eval()
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1: nothing would notice their loss
        for name, parameter in made.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("family", "tied", "changes"),
    [
        ("qwen2", True, {}),
        ("qwen2", False, {"num_key_value_heads": 6}),
        ("llama", True, {"num_key_value_heads": 1}),
        ("llama", False, {"head_dim": 16}),
        ("llama", False, {"attention_bias": True}),
        ("llama", True, {"rope_parameters": LLAMA3}),
    ],
    ids=["qwen2", "qwen2-all-heads", "llama-one-kv-head", "llama-wide-heads", "llama-biases", "llama3-rope"],
)
def test_random_models_agree_with_transformers(family, tied, changes, tmp_path):
    import torch

    import apr
    from apr.model import Decoder, ModelConfig

    theirs = transformers_model(family, tied, seed=7, **changes)
    state = {
        name: value for name, value in theirs.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    config = ModelConfig.from_metadata(theirs.config.to_dict())
    apr.save(state, tmp_path / "m.apr", config.to_metadata())
    ours = Decoder.from_apr(tmp_path / "m.apr")
    ids = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(1))

    expected = theirs(ids).logits
    logits = ours(ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for output in (expected, logits):
        output.float().logsumexp(-1).sum().backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(reference[name].grad.norm().item(), rel=1e-3), (
            name
        )


@pytest.mark.parametrize(
    "name",
    [
        "from_safetensors_qwen2_tied_int8",
        "from_safetensors_llama_untied_int4",
        "from_safetensors_llama_untied_fp16",
        "from_safetensors_qwen2_tied_int4",
    ],
)
def test_quantized_imports_give_the_logits_of_their_own_weights(name):
    import torch
    from transformers import AutoModelForCausalLM

    import apr
    from apr.model import Decoder

    path = DATA / "imported-0.72" / f"{name}.apr"
    source = name.removeprefix("from_safetensors_").rsplit("_", 1)[0]
    theirs = AutoModelForCausalLM.from_pretrained(
        DATA / "imported-0.72" / f"hf_{source}", dtype=torch.float32
    )
    theirs.load_state_dict({key: value.float() for key, value in apr.load(path).items()}, strict=True)
    ids = torch.arange(1, 40)[None] * 7 % 512
    with torch.no_grad():
        torch.testing.assert_close(Decoder.from_apr(path)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_the_head_of_a_tied_model_is_one_parameter():
    from apr.model import Decoder

    model = Decoder.from_apr(DATA / "imported-0.72" / "from_safetensors_qwen2_tied.apr")
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    assert len(names) == 2 * 12 + 2
    assert model.head_weight is model.model.embed_tokens.weight


def test_a_position_does_not_depend_on_later_ones():
    import torch

    from apr.model import Decoder

    model = Decoder.from_apr(DATA / "aprender-0.72" / "qwen2_untied_f32.apr")
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 12:] = 400
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[0, :12], after[0, :12])
    assert not torch.equal(before[0, 12], after[0, 12])


def test_too_many_layers_are_refused_before_any_is_built(tmp_path, data):
    import apr
    from apr.errors import RefusedError, WeightsError
    from apr.model import Decoder

    for num_layers, error in ((10**9, RefusedError), (9999, WeightsError)):
        path = tmp_path / f"{num_layers}.apr"
        apr.stamp(data / "aprender-0.72" / "qwen2_untied_f32.apr", {"num_layers": num_layers}, path)
        with pytest.raises(error, match="num_layers"):
            Decoder.from_apr(path)

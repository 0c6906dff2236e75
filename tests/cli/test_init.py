"""`apr init`: files to start training from."""

import json
from pathlib import Path

import pytest
import torch

import apr
from apr.cli import main
from apr.convert import convert
from apr.model import Decoder, ModelConfig

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "hf_qwen2_tied"
SMALL = ["--arch", "qwen2-4m", "--vocab-size", "512"]


def init(path, *flags):
    return main(["init", *flags, "-o", str(path)])


def test_the_file_is_the_model_that_training_from_scratch_starts_from(tmp_path):
    from apr.model.init import init_weights

    assert init(tmp_path / "m.apr", *SMALL, "--seed", "7") == 0
    assert apr.verify(tmp_path / "m.apr").ok
    model = Decoder.from_apr(tmp_path / "m.apr")
    scratch = Decoder(model.config)
    init_weights(scratch, 7)
    for (name, ours), theirs in zip(model.named_parameters(), scratch.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with apr.load(tmp_path / "m.apr") as file:
        assert ModelConfig.from_metadata(file.metadata) == model.config
        assert file.metadata["param_count"] == sum(p.numel() for p in model.parameters())


def test_the_seed_determines_every_byte(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert init(tmp_path / f"{name}.apr", *SMALL, "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.apr").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_transformers_loads_it_after_a_conversion(tmp_path):
    from transformers import AutoModelForCausalLM

    init(tmp_path / "m.apr", "--arch", "qwen2-4m", "--tokenizer", str(TOKENIZER), "--dtype", "bf16")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, ours = model(ids).logits, Decoder.from_apr(tmp_path / "m.apr")(ids)
    assert torch.allclose(expected, ours, atol=1e-4, rtol=0)
    assert (tmp_path / "hf" / "tokenizer.json").exists()


@pytest.mark.long
def test_the_full_size_of_qwen_converts_there_and_back(tmp_path, capsys):
    assert init(tmp_path / "m.apr", "--preset", "qwen2.5-0.5b", "--dtype", "bf16", "--json") == 0
    assert json.loads(capsys.readouterr().out) | {"seconds": 0, "size_bytes": 0} == {
        "target": str(tmp_path / "m.apr"), "tensors": 290, "param_count": 494_032_768, "vocab_size": 151_936,
        "size_bytes": 0, "seconds": 0,
    }  # fmt: skip
    convert(tmp_path / "m.apr", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back.apr")
    report = apr.diff(tmp_path / "m.apr", tmp_path / "back.apr")
    assert (report.compared, report.tensors, report.only_in_a, report.only_in_b) == (290, (), (), ())
    Decoder.from_apr(tmp_path / "back.apr", device="cpu")


def test_wrong_options_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "sizes.yaml").write_text("architecture: qwen2\nhidden_size: 64\n")
    for flags, code, says in [
        (["--arch", "qwen2-4m"], 2, "--vocab-size"),
        (["--arch", "gone.yaml", "--vocab-size", "9"], 3, "No such file"),
        (["--arch", str(tmp_path / "sizes.yaml"), "--vocab-size", "9"], 5, "num_layers"),
        ([*SMALL, "--tokenizer", str(TOKENIZER), "--vocab-size", "100"], 2, "512"),
        ([*SMALL, "--seed", "-1"], 2, "--seed"),
    ]:
        assert init(tmp_path / "m.apr", *flags) == code, flags
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["sizes.yaml"]


def test_sizes_may_have_an_exponent(tmp_path, run):
    import apr

    sizes = (
        "{architecture: llama, hidden_size: 6.4e1, num_layers: 1e0, num_heads: 4, num_kv_heads: 2, "
        "rope_theta: 1e4, intermediate_size: 1e2, max_position_embeddings: 1e3, rms_norm_eps: 1e-5, "
        "tie_word_embeddings: true}"
    )
    (tmp_path / "sizes.yaml").write_text(sizes)
    arguments = ["--arch", tmp_path / "sizes.yaml", "--vocab-size", "300", "-o", tmp_path / "m.apr"]
    assert run("init", *arguments)[0] == 0
    with apr.load(tmp_path / "m.apr") as file:
        metadata = file.metadata
    assert (metadata["rope_theta"], metadata["rms_norm_eps"]) == (10000.0, 1e-5)
    assert (metadata["max_position_embeddings"], metadata["hidden_size"]) == (1000, 64)

"""`Decoder.save_apr`: what a training loop of one's own leaves."""

import copy
import json
from pathlib import Path

import pytest
import torch

import apr
from apr.convert import ConvertOptions, convert
from apr.model import Decoder, ModelConfig

FIXTURES = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
SIZES = {
    "architecture": "llama", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "vocab_size": 90,
}  # fmt: skip


@pytest.fixture(params=["hf_qwen2_tied", "hf_llama_untied"])
def source(request):
    """The name of a directory of transformers."""
    return request.param


@pytest.fixture
def base(source, tmp_path):
    """A model file with its tokenizer."""
    convert(FIXTURES / source, tmp_path / "base.apr")
    return tmp_path / "base.apr"


@pytest.fixture
def trained(base):
    model = Decoder.from_apr(base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(24).view(2, 12)
    model(ids).logsumexp(-1).mean().backward()
    optimizer.step()
    return model


def test_it_is_the_same_model_again(trained, base, tmp_path):
    trained.save_apr(tmp_path / "m.apr")
    again = Decoder.from_apr(tmp_path / "m.apr")
    assert again.config == trained.config
    assert ModelConfig.from_metadata(apr.load(tmp_path / "m.apr").metadata) == trained.config
    for (name, ours), theirs in zip(again.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not torch.equal(again.head_weight, Decoder.from_apr(base).head_weight)
    assert apr.verify(tmp_path / "m.apr").ok


def test_transformers_loads_it_with_its_tokenizer(trained, source, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained.save_apr(tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, trained(ids), atol=1e-4, rtol=0)
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (tmp_path / "hf", FIXTURES / source)]
    assert tokenizers[0]("The sea is 12").input_ids == tokenizers[1]("The sea is 12").input_ids


def test_tokenizer_and_provenance_are_kept_and_the_record_of_training_is_not(base, tmp_path):
    apr.stamp(base, {"license": "MIT", "chat_template": "{{ 1 }}", "training": {"mode": "finetune"}}, base)
    model = Decoder.from_apr(base)
    model.save_apr(tmp_path / "m.apr", metadata={"name": "mine", "note": 3})
    before, after = apr.load(base).metadata, apr.load(tmp_path / "m.apr").metadata
    assert after["license"] == "MIT"
    assert (after["name"], after["note"]) == ("mine", 3)
    assert "training" not in after
    kept = {key for key in before if key.startswith(("tokenizer.", "chat_template", "hf_"))}
    assert {key: before[key] for key in kept} == {key: after[key] for key in kept}
    assert after["param_count"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_keep_their_dtype(trained, tmp_path, dtype):
    trained.to(dtype).save_apr(tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        assert {file[name].dtype for name in file} == {dtype}


def test_the_same_model_writes_the_same_bytes(trained, tmp_path):
    for name, model in (("a", trained), ("b", trained), ("c", copy.deepcopy(trained))):
        model.save_apr(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_model_that_never_had_a_file_can_be_trained_further(tmp_path):
    from apr.data import repair
    from apr.train import PretrainConfig, pretrain

    (tmp_path / "shards").mkdir()
    ids = torch.randint(90, (4000,), generator=torch.Generator().manual_seed(0)) ** 2 // 90
    (tmp_path / "shards" / "shard-00000.bin").write_bytes(ids.to(torch.int32).numpy().tobytes())
    repair(tmp_path / "shards")
    torch.manual_seed(0)
    model = Decoder(ModelConfig.from_metadata(SIZES))
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.02)
    model.save_apr(tmp_path / "m.apr")
    config = PretrainConfig(
        init=tmp_path / "m.apr", dataset=tmp_path / "shards", run_dir=tmp_path / "run", seq_length=16,
        batch_size=2, num_steps=2, val_tokens=64,
    )  # fmt: skip
    assert pretrain(config).exit_code == 0


def test_a_compiled_model_has_the_same_names(trained, tmp_path):
    trained.save_apr(tmp_path / "plain.apr")
    compiled = torch.compile(trained, backend="eager")
    compiled.save_apr(tmp_path / "compiled.apr")
    trained.model.layers[0] = torch.compile(trained.model.layers[0], backend="eager")
    trained.save_apr(tmp_path / "layer.apr")
    plain = (tmp_path / "plain.apr").read_bytes()
    assert (tmp_path / "compiled.apr").read_bytes() == plain
    assert (tmp_path / "layer.apr").read_bytes() == plain


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": float("nan")}])
def test_a_file_that_cannot_be_written_leaves_the_old_one(trained, tmp_path, metadata):
    path = tmp_path / "out" / "m.apr"
    path.parent.mkdir()
    trained.save_apr(path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        trained.save_apr(path, metadata=metadata)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["m.apr"]
    with pytest.raises(FileNotFoundError):
        trained.save_apr(tmp_path / "gone" / "m.apr")


def test_it_converts_to_gguf_and_stays_readable_without_torch(trained, tmp_path):
    trained.save_apr(tmp_path / "m.apr")
    facts = apr.inspect(tmp_path / "m.apr")
    assert facts["param_count"] == sum(p.numel() for p in trained.parameters())
    assert json.dumps(facts["metadata"])
    convert(tmp_path / "m.apr", tmp_path / "m.gguf", ConvertOptions(check=False))
    from gguf import GGUFReader

    assert GGUFReader(tmp_path / "m.gguf").tensors

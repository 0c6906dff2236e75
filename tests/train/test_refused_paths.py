"""Every refusal of `Decoder.from_apr`, `evaluate_file` and `pretrain` is an AprError that names its file."""

import json
from pathlib import Path

import pytest

import apr
from apr.errors import AprError, PreflightError, RefusedError
from apr.model import Decoder
from apr.train import evaluate_file, plan, pretrain

BASE = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "from_safetensors_llama_tied.apr"


def changed(path, drop=(), tensors=(), **metadata):
    """Write the base model with other metadata and without some tensors."""
    with apr.load(BASE) as file:
        kept = {key: value for key, value in file.metadata.items() if key not in drop} | metadata
        apr.save({name: file[name].clone() for name in file if name not in tensors}, path, kept)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "bert", "hf_architecture": "BertModel", "hf_model_type": "bert"},
        {"drop": ["architecture", "hf_architecture", "hf_model_type", "model_type"]},
        {"drop": ["num_layers", "num_hidden_layers", "n_layers"]},
        {"num_layers": "two"},
        {"num_layers": 10**6, "num_hidden_layers": 10**6},
        {"rms_norm_eps": -1.0},
        {"mlp_bias": True},
        {"rope_scaling": {"rope_type": "new"}},
        {"tensors": ["model.norm.weight"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_is_refused_is_named(tmp_path, options, make_shards, change):
    path = changed(tmp_path / "m.apr", **change)
    shards = make_shards("other")
    for call in (
        lambda: Decoder.from_apr(path),
        lambda: evaluate_file(path, shards, seq_length=16),
        lambda: pretrain(options(init=path)),
        lambda: plan(options(init=path)),
    ):
        with pytest.raises(RefusedError) as error:
            call()
        assert isinstance(error.value, AprError)
        assert error.value.path == str(path)
        assert str(path) in str(error.value)


def refusals(tmp_path, options, make_shards):
    """Return a call for each refusal, and the path that it is about."""
    shards, tiny = make_shards("good"), make_shards("tiny", tokens=20)
    flat, foreign = make_shards("flat", ids=[3] * 4000), make_shards("foreign", ids=[5, 70_000] * 2000)
    unfinished = make_shards("unfinished", complete=False)
    wrong = make_shards("wrong", total_tokens=5)
    (tmp_path / "empty").mkdir()
    taken = tmp_path / "taken"
    (taken / "ckpt").mkdir(parents=True)
    (taken / "result.json").write_text(json.dumps({}))
    (taken / "train.jsonl").touch()
    return {
        "evaluate too long": (lambda: evaluate_file(BASE, shards, seq_length=10**6), BASE),
        "evaluate too few": (lambda: evaluate_file(BASE, tiny, seq_length=64), tiny),
        "evaluate no text": (lambda: evaluate_file(BASE, flat, seq_length=16), flat),
        "evaluate foreign": (lambda: evaluate_file(BASE, foreign, seq_length=16), foreign),
        "evaluate no shards": (lambda: evaluate_file(BASE, tmp_path / "empty"), tmp_path / "empty"),
        "too long": (lambda: pretrain(options(init=BASE, seq_length=10**6)), BASE),
        "no text": (lambda: pretrain(options(init=BASE, dataset=flat)), flat),
        "foreign": (lambda: pretrain(options(init=BASE, dataset=foreign)), foreign),
        "no shards": (lambda: pretrain(options(init=BASE, dataset=tmp_path / "empty")), tmp_path / "empty"),
        "unfinished": (lambda: pretrain(options(init=BASE, dataset=unfinished)), unfinished),
        "wrong manifest": (lambda: pretrain(options(init=BASE, dataset=wrong)), wrong / "manifest.json"),
        "too many steps": (lambda: pretrain(options(init=BASE, dataset=shards, num_steps=10**6)), shards),
        "taken": (lambda: pretrain(options(init=BASE, run_dir=taken)), taken),
        "no contract": (
            lambda: pretrain(options(init=BASE, contract=BASE.parents[3] / "contracts" / "apr-gguf-v1.yaml")),
            BASE.parents[3] / "contracts" / "apr-gguf-v1.yaml",
        ),
    }


def test_every_other_refusal_names_its_file(tmp_path, options, make_shards):
    for name, (call, path) in refusals(tmp_path, options, make_shards).items():
        with pytest.raises(AprError) as error:
            call()
        problems = error.value.problems if isinstance(error.value, PreflightError) else [error.value]
        about = [problem.path for problem in problems if isinstance(problem, AprError)]
        assert [shown for shown in about if shown and Path(shown).is_relative_to(path)], (name, problems)
        assert error.value.path is not None, name

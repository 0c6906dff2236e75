"""Models to convert, and the logits that they must keep."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

import apr
from apr.convert import convert

MODELS = ["qwen2_tied", "qwen2_untied", "llama_tied", "llama_untied"]


IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"


def transformers_model(directory):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits(model):
    ids = torch.arange(60).reshape(2, 30) * 7 % 512
    with torch.no_grad():
        return model(ids).logits


def check_logits(model, path):
    """Against what transformers gave for the weights that the importer had."""
    expected = json.loads(path.read_text())
    ids = torch.tensor([expected["input_ids"]])
    with torch.no_grad():
        outputs = model(ids, labels=ids)
    assert abs(outputs.loss.item() - expected["loss"]) < 1e-4
    assert np.allclose(outputs.logits[0, -1, :16], expected["logits_last_first16"], atol=1e-4)
    assert np.allclose(outputs.logits[0].logsumexp(-1), expected["logits_row_logsumexp"], atol=1e-4)
    assert outputs.logits[0].argmax(-1).tolist() == expected["logits_row_argmax"]


def logits_of_ours(model):
    ids = torch.arange(60).reshape(2, 30) * 7 % 512
    with torch.no_grad():
        return model(ids)


def sharded(source, directory, monkeypatch_size="200KB"):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(directory, max_shard_size=monkeypatch_size)


def changed(directory, tmp_path, **config):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    facts = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").chmod(0o644)
    (copy / "config.json").write_text(json.dumps(facts))
    return copy


def resaved(tmp_path, tensors=None, dropped=(), **metadata):
    """The tied Llama as an .apr, with other tensors or metadata."""
    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        kept = {name: values for name, values in file.items() if name not in dropped}
        apr.save(kept | (tensors or {}), tmp_path / "changed.apr", dict(file.metadata) | metadata)
    return tmp_path / "changed.apr"


def tiny(tmp_path, family="llama", tokenizer=True, **changes):
    """A random model with transformers' class, as an .apr file."""
    from tests.model.tiny import transformers_model as random_model

    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "head_dim": 16,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }
    directory = tmp_path / "hf"
    random_model(family, **sizes | changes).save_pretrained(directory)
    if tokenizer is not True and tokenizer:
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    elif tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(IMPORTED / "hf_llama_tied" / name, directory)
    return convert(directory, tmp_path / "tiny.apr").target

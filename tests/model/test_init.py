"""`--arch`: presets, YAML files of sizes, and transformers' config.json."""

import json

import pytest

from apr.errors import RefusedError, UsageError
from apr.model.init import PRESETS, load_arch, read_arch

SIZES = {
    "architecture": "llama", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 128, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}  # fmt: skip


def write(path, sizes):
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in sizes.items()))
    return str(path)


def hf_config(name, **changes):
    import transformers

    sizes = {
        "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128, "pad_token_id": 0,
    }  # fmt: skip
    return getattr(transformers, name)(**sizes | changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"tie_word_embeddings": True}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 24}),
        ("MistralConfig", {"sliding_window": None}),
        ("Gemma2Config", {"head_dim": 16}),
        ("GraniteConfig", {}),
        ("Olmo2Config", {}),
    ],
)
@pytest.mark.parametrize("form", ["config.json", "directory"])
def test_a_config_of_transformers_gives_its_model(tmp_path, name, changes, form):
    from transformers import AutoModelForCausalLM

    from apr.model import Decoder

    config = hf_config(name, **changes)
    config.save_pretrained(tmp_path)
    ours = load_arch(str(tmp_path if form == "directory" else tmp_path / "config.json"), 300)
    theirs = AutoModelForCausalLM.from_config(config)
    assert ours.vocab_size == 320
    assert sum(p.numel() for p in Decoder(ours).parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.rms_norm_eps == config.rms_norm_eps
    assert ours.tie_word_embeddings == config.tie_word_embeddings


def test_a_config_of_2023_has_the_defaults_of_its_class(tmp_path):
    sizes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 96, "vocab_size": 320}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = load_arch(str(tmp_path / "config.json"), 320)
    assert (config.num_kv_heads, config.layers[0].rope.theta, config.max_position_embeddings) == (
        4,
        1e4,
        2048,
    )


@pytest.mark.parametrize(
    "left_out", [["num_layers"], ["num_layers", "rope_theta"], list(SIZES), ["architecture"]]
)
def test_all_missing_keys_are_named_at_once(tmp_path, left_out):
    path = write(tmp_path / "sizes.yaml", {"n": 1} | {k: v for k, v in SIZES.items() if k not in left_out})
    with pytest.raises(RefusedError) as error:
        load_arch(path, 300)
    assert error.value.path == path
    named = str(error.value).removeprefix(f"{path}: ").split(" missing")[0].split(", ")
    assert sorted(named) == sorted(left_out)


def test_the_keys_of_a_family_are_among_them(tmp_path):
    path = write(tmp_path / "sizes.yaml", SIZES | {"architecture": "granite"})
    with pytest.raises(RefusedError, match=r"attention_multiplier.*logits_scaling"):
        load_arch(path, 300)


def test_a_misspelled_key_names_the_one_that_is_missing(tmp_path):
    sizes = {"num_layer" if key == "num_layers" else key: value for key, value in SIZES.items()}
    with pytest.raises(RefusedError, match="'num_layer' is not a key; did you mean 'num_layers'"):
        load_arch(write(tmp_path / "sizes.yaml", sizes), 300)


@pytest.mark.parametrize("key", ["vocab_size", "n_vocab"])
@pytest.mark.parametrize(("stated", "rows"), [(300, 300), (320, 320), (299, None), ("many", None)])
def test_a_file_may_state_more_rows_than_the_data_has_ids(tmp_path, key, stated, rows):
    path = write(tmp_path / "sizes.yaml", SIZES | {key: stated})
    if rows is None:
        with pytest.raises(RefusedError, match="vocab_size"):
            load_arch(path, 300)
    else:
        assert load_arch(path, 300).vocab_size == rows


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("gone.yaml", "No such file"),
        ("gone.json", "No such file"),
        ("gone/config", "No such file"),
        ("qwen2.5-05b", "did you mean qwen2.5-0.5b?"),
        ("xyzzy", "presets are"),
    ],
)
def test_what_does_not_exist_is_said_to_be_missing(tmp_path, monkeypatch, arch, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=arch) as error:
        read_arch(arch)
    assert says in str(error.value)
    assert (" presets" in str(error.value)) == (arch in {"qwen2.5-05b", "xyzzy"})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name):
    assert load_arch(name, 300).vocab_size == 300


def test_a_model_is_not_a_file_of_sizes(data):
    with pytest.raises(UsageError, match="--init"):
        read_arch(str(data / "aprender-0.72" / "qwen2_untied_f32.apr"))


def test_help_and_documentation_list_the_keys(capsys):
    from pathlib import Path

    from apr.cli import main

    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for command in ("init", "pretrain"):
        main([command, "--help"])
        text = capsys.readouterr().out
        assert not [key for key in SIZES if key not in text or f"`{key}`" not in page]

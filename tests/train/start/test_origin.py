"""Where a run's model comes from, and what a resumed run still needs of it."""

import shutil

import pytest
from tests.train.conftest import BASE, DATA, checkpoints


def test_config_yaml_names_the_sizes_absolutely_and_others_are_refused(options, train, monkeypatch, tmp_path):
    import yaml

    from apr.errors import RefusedError

    sizes = (
        "{{architecture: llama, hidden_size: 32, num_layers: {}, num_heads: 4, num_kv_heads: 2, "
        "intermediate_size: 64, max_position_embeddings: 64, rope_theta: 10000.0, "
        "rms_norm_eps: 1.0e-6, tie_word_embeddings: false}}"
    )
    (tmp_path / "sizes.yaml").write_text(sizes.format(2))
    (tmp_path / "others.yaml").write_text(sizes.format(3))
    monkeypatch.chdir(tmp_path)
    scratch = {"init": None, "mode": "from-scratch", "num_steps": 3, "eval_every": 3}
    train(options(**scratch, arch="sizes.yaml"))
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["arch"] == str(tmp_path / "sizes.yaml")
    for arch in ("sizes.yaml", str(tmp_path / "sizes.yaml")):
        assert train(options(**scratch, arch=arch, resume=True)).steps_completed == 3
    with pytest.raises(RefusedError, match=r"--arch others\.yaml"):
        train(options(**scratch, arch="others.yaml", resume=True))


def test_a_base_file_that_changed_is_refused(options, train, tmp_path):
    import apr
    from apr.errors import RefusedError

    base = tmp_path / "base.apr"
    base.write_bytes(BASE.read_bytes())
    train(options(init=base))
    with apr.load(base) as file:
        tensors = {name: file[name].clone() for name in file}
        metadata = dict(file.metadata)
    tensors["model.norm.weight"] *= 1.5
    apr.save(tensors, base, metadata=metadata)
    with pytest.raises(RefusedError, match=r"base\.apr.*--init"):
        train(options(init=base, resume=True, extend=True, num_steps=13))


@pytest.mark.parametrize("mode", ["finetune", "from-scratch"])
def test_a_checkpoint_and_the_data_are_all_that_resuming_needs(options, train, train_until, tmp_path, mode):
    """The file, the sizes and the tokenizer that the run was started with are gone."""

    from apr.train import plan

    base, sizes, tokenizer = (tmp_path / name for name in ("base.apr", "sizes.yaml", "tokenizer"))
    base.write_bytes(BASE.read_bytes())
    sizes.write_text(
        "{architecture: llama, hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, "
        "intermediate_size: 64, max_position_embeddings: 64, rope_theta: 10000.0, "
        "rms_norm_eps: 1.0e-6, tie_word_embeddings: false}"
    )
    shutil.copytree(DATA / "hf_qwen2_tied", tokenizer)
    start = {"init": base} if mode == "finetune" else {"init": None, "mode": mode, "arch": str(sizes)}
    train(options(**start, tokenizer=tokenizer, run_dir=tmp_path / "alone"))
    assert train_until(options(**start, tokenizer=tokenizer), 7).steps_completed == 8
    base.unlink()
    sizes.unlink()
    shutil.rmtree(tokenizer)
    again = options(**start, tokenizer=tokenizer, resume=True)
    assert plan(again).prepared.parameters > 0
    assert train(again).status == "BUDGET_SPENT"
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "alone")


def test_a_run_without_a_checkpoint_needs_its_base_file(options, train, train_until, tmp_path):
    base = tmp_path / "base.apr"
    base.write_bytes(BASE.read_bytes())
    assert train_until(options(init=base), 0, field="val_loss").last_checkpoint is None
    base.unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.apr"):
        train(options(init=base, resume=True))


@pytest.mark.parametrize("rope_type", [0, 2])
def test_names_decide_the_rope_order_not_rope_type(tmp_path, rope_type):
    """The ecosystem's importer writes 0 (adjacent pairs) for weights in split halves."""
    import torch

    import apr
    from apr.model import Decoder

    apr.stamp(BASE, {"rope_type": rope_type}, tmp_path / "stamped.apr")
    ids = torch.arange(20)[None]
    assert torch.equal(Decoder.from_apr(tmp_path / "stamped.apr")(ids), Decoder.from_apr(BASE)(ids))


@pytest.fixture
def fresh(tmp_path, run):
    """Make a file of random weights, by how it was made."""

    def make(how):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        import apr

        path = tmp_path / "fresh.apr"
        if how == "transformers":
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(DATA / "hf_qwen2_tied")
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
            assert run("convert", tmp_path / "hf", path)[0] == 0
            return path
        dtype = how if how in {"f16", "bf16"} else "f32"
        flags = ["--arch", "qwen2-4m", "--vocab-size", 512, "--dtype", dtype]
        assert run("init", *flags, "-o", path)[0] == 0
        if how == "trained":
            with apr.load(path) as file:
                tensors, metadata = {name: file[name].clone() for name in file}, dict(file.metadata)
            tensors["model.layers.3.input_layernorm.weight"][5] += 0.01
            apr.save(tensors, path, metadata=metadata)
        return path

    return make


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("finetune", "f32"),
        ("from-init", "f16"),
        ("finetune", "bf16"),
        ("from-init", "transformers"),
        ("from-init", "trained"),
    ],
)
def test_random_weights_in_init_are_noticed_and_the_learning_rate_is_said(options, fresh, mode, how):
    from apr.train import plan

    text = str(plan(options(init=fresh(how), mode=mode, lr=None)))
    assert ("was never trained" in text) == (how != "trained")
    assert (f"5e-05 is the default of --mode {mode}" in text) == (how != "trained")
    assert ("--lr 0.0003" in text) == (how != "trained")
    asked = str(plan(options(init=fresh(how), mode=mode, lr=2e-3)))
    assert ("peak lr 0.002, as asked" in asked) == (how != "trained")


def test_the_limit_of_the_first_loss_is_that_of_random_weights(options, train, train_until, fresh, tmp_path):
    """2 ln V, also after a resume: ln V of a large vocabulary is above the 10 of trained weights."""
    import math

    from tests.train.conftest import gate

    init = fresh("f32")
    stopped = train_until(options(init=init), 7)
    ended = train(options(init=init, resume=True))
    for result in (stopped, ended):
        assert result.val_loss_history[0] < 2 * math.log(512)
    assert gate(stopped, "divergence").threshold == pytest.approx(2 * math.log(512))
    (tmp_path / "next").mkdir()
    trained = options(init=tmp_path / "run" / ended.last_checkpoint, run_dir=tmp_path / "next", num_steps=1)
    assert gate(train(trained), "divergence").threshold == 10

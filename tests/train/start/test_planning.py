"""`--plan` checks and measures everything, and trains nothing."""

import json
import math

import pytest
from tests.train.conftest import BASE, SEQ
from tests.train.oracles import TRAIN_WINDOWS


def test_a_plan_trains_nothing(options):
    from apr.train import plan

    config = options()
    planned = plan(config)
    assert not config.run_dir.exists()
    assert planned.seconds_per_step > 0
    assert planned.to_dict()["training_windows"] == TRAIN_WINDOWS
    assert "held out: the last 20 windows" in str(planned)


def test_a_plan_says_everything_that_would_happen(options, tmp_path, flags, capsys):
    import apr
    from apr.cli import main

    config = options(val_tokens=640, num_steps=12)
    assert main(["pretrain", *flags(config), "--plan", "--json"]) == 0
    out, err = capsys.readouterr()
    planned = json.loads(out)
    sizes = {
        name: math.prod(apr.load(BASE).info(name).shape)
        for name in apr.load(BASE)
        if name != "lm_head.weight"
    }
    groups = planned["parameter_groups"]
    assert sum(groups.values()) == planned["parameters"] == sum(sizes.values())
    assert groups["embedding"] == sizes["model.embed_tokens.weight"]
    assert groups["attention"] == sum(n for name, n in sizes.items() if "self_attn" in name)
    assert groups["mlp"] == sum(n for name, n in sizes.items() if "mlp" in name)
    assert groups["norms"] == sum(n for name, n in sizes.items() if "norm" in name)
    assert groups["head"] == 0
    assert planned["architecture"]["num_kv_heads"] == apr.load(BASE).metadata["num_kv_heads"]
    assert planned["tokens"] == 12 * 4 * SEQ
    assert planned["data_epochs"] == pytest.approx(12 * 4 / TRAIN_WINDOWS, abs=1e-4)
    assert planned["checkpoint_bytes"] == 12 * planned["parameters"]
    assert (
        planned["disk_bytes"] == 2 * planned["checkpoint_bytes"]
    )  # the second epoch's beside the first one's
    assert 0 < planned["memory_bytes"] < planned["free_memory_bytes"]
    assert planned["checkpoint_bytes"] < planned["peak_memory_bytes"]
    assert "GiB at the peak" in err
    assert planned["seconds"] == pytest.approx(
        12 * planned["seconds_per_step"]
        + 3 * planned["seconds_per_evaluation"]
        + 2 * planned["seconds_per_checkpoint"]
    )
    assert planned["evaluations"] == 3
    assert planned["evaluation_share"] == pytest.approx(
        3 * planned["seconds_per_evaluation"] / planned["seconds"], abs=1e-4
    )
    assert f"{planned['evaluation_share']:.0%} of it for 3 evaluations" in err
    for words in ("embedding 32,768", "tokens: 1,536", "are free on cpu", "disk: ", "s per checkpoint"):
        assert words in err
    assert not list(tmp_path.glob(".apr-plan-*"))


@pytest.mark.parametrize("where", ["build_model", "_measure_step", "_measure_evaluation"])
def test_a_plan_that_finds_too_little_memory(refused, monkeypatch, where):
    import torch

    from apr.train.prepared import Prepared
    from apr.train.start import planning

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    owner = Prepared if where == "build_model" else planning
    monkeypatch.setattr(owner, where, full)
    line, code = refused("--plan")
    assert code == 5
    assert "out of memory" in line
    assert ("weights" if where == "build_model" else "--micro-batch 2") in line


def test_a_plan_measures_with_the_algorithms_of_the_run(options, monkeypatch):
    import torch

    from apr.train import plan
    from apr.train.start import planning

    enabled = []
    monkeypatch.setattr(
        planning,
        "_measure_step",
        lambda *_: enabled.append(torch.are_deterministic_algorithms_enabled()) or 1.0,
    )
    plan(options(deterministic=True))
    assert enabled == [True]


def test_a_plan_of_a_directory_that_is_taken(options, train):
    from apr.errors import RefusedError
    from apr.train import plan

    train(options())
    with pytest.raises(RefusedError, match="holds a run"):
        plan(options())


def test_a_plan_of_a_resumed_run_counts_what_is_left(options, train, tmp_path):
    from apr.train import plan

    train(options())
    train(options(run_dir=tmp_path / "odd", eval_every=5))
    more = {"num_steps": 18, "extend": True, "resume": True}
    planned = plan(options(**more))
    facts = planned.to_dict()
    assert facts["steps_done"] == 12
    assert planned.seconds == pytest.approx(
        6 * planned.seconds_per_step + planned.seconds_per_evaluation + planned.seconds_per_checkpoint
    )
    assert "6 steps left" in str(planned)
    # A last interval that is shorter than the others was evaluated too: nothing is left.
    done = plan(options(run_dir=tmp_path / "odd", eval_every=5, resume=True))
    assert (done.evaluations, done.seconds, done.evaluation_share) == (0, 0, 0)

"""Each gate stops what it is there to stop, and says with which value."""

import pytest


def gate(result, name):
    return next(g for g in result.gates if g.name == name)


def test_divergence_of_the_first_epoch(options, train, monkeypatch):
    from apr.train import gates

    monkeypatch.setattr(gates, "first_cap", lambda *_: 0.5)
    result = train(options())
    assert (result.status, result.exit_code, result.epochs_completed) == ("DIVERGENCE", 5, 1)
    assert not gate(result, "divergence").passed


def test_a_held_out_loss_that_doubles():
    from apr.train import gates

    assert gates.divergence([9.9], 10.0).passed
    assert not gates.divergence([10.1], 10.0).passed
    assert gates.divergence([1.0, 2.0], 10.0).passed
    assert not gates.divergence([1.0, 2.01], 10.0).passed
    after = gates.divergence([1.0, 2.5, 1.0], 10.0)
    assert (after.passed, after.value, after.threshold) == (False, 2.5, 2.0)
    assert gates.first_cap(None, 512) == pytest.approx(12.4766, abs=1e-4)


def test_a_loss_that_is_no_number_stops_before_the_update(options, train, train_until, monkeypatch, tmp_path):
    """What is saved is the state before it: the bytes of a run that was stopped there."""
    import json

    from apr.train import step

    before = options(run_dir=tmp_path / "stopped")
    assert train_until(before, 4).last_checkpoint == "ckpt/step-00000005.apr"
    add_gradients = step.add_gradients

    def broken(*arguments, **keywords):
        out = add_gradients(*arguments, **keywords)
        return out * float("nan") if calls.append(1) or len(calls) > 5 else out

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(step, "add_gradients", broken)
        result = train(options())
    assert (result.status, result.exit_code) == ("NUMERICAL_INSTABILITY", 5)
    assert not gate(result, "numerics").passed
    assert result.steps_completed == 5
    last = json.loads((tmp_path / "run" / "train.jsonl").read_text().splitlines()[-1])
    assert last["train_loss"] is None
    assert len(last["windows"]) == 4
    assert ", ".join(map(str, last["windows"])) in result.detail
    assert result.last_checkpoint == "ckpt/step-00000005.apr"
    saved, expected = (run / result.last_checkpoint for run in (tmp_path / "run", before.run_dir))
    assert saved.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(("rate", "status"), [(1e30, "NUMERICAL_INSTABILITY"), (1e3, "DIVERGENCE")])
def test_weights_that_exploded_are_not_gone_on_from(options, train, monkeypatch, tmp_path, rate, status):
    """The good checkpoint before is the last one, and --resume takes it."""
    from apr.train import loop

    usual = loop.learning_rate
    with monkeypatch.context() as patched:
        patched.setattr(loop, "learning_rate", lambda step, **k: rate if step == 7 else usual(step, **k))
        result = train(options())
    assert (result.status, result.exit_code) == (status, 5)
    if status == "NUMERICAL_INSTABILITY":
        assert result.last_checkpoint == "ckpt/epoch-000.apr"
        assert "spoiled too and are not saved" in result.detail
        assert not list((tmp_path / "run" / "ckpt").glob("step-*"))
    resumed = train(options(resume=True))
    assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", "ckpt/epoch-000.apr")
    log = (tmp_path / "run" / "run.log").read_text()
    assert ("weights of a run that exploded" in log) == (status == "DIVERGENCE")


def test_a_held_out_loss_that_is_no_number_ends_the_run_and_keeps_what_was_trained(
    options, train, monkeypatch, tmp_path
):
    from dataclasses import replace

    from apr.train import loop

    evaluate = loop.evaluate
    for n, (losses, saved) in enumerate(
        (([float("nan")], None), ([5.0, float("nan")], "ckpt/step-00000006.apr"))
    ):
        left = iter(losses)
        with monkeypatch.context() as patched:
            patched.setattr(
                loop, "evaluate", lambda *a, left=left, **k: replace(evaluate(*a, **k), val_loss=next(left))
            )
            config = options(run_dir=tmp_path / str(n))
            result = train(config)
        assert (result.status, result.exit_code) == ("NUMERICAL_INSTABILITY", 5)
        assert "held-out loss nan" in result.detail
        assert not gate(result, "numerics").passed
        assert result.last_checkpoint == saved
        resumed = train(replace(config, resume=True))
        assert (resumed.status, resumed.resumed_from) == ("BUDGET_SPENT", saved)


def test_paths_that_disagree_are_refused_before_the_first_update(options, train, monkeypatch):
    from apr.train import loop

    losses = loop.token_losses
    monkeypatch.setattr(loop, "token_losses", lambda model, ids: losses(model, ids) * 1.01)
    result = train(options())
    assert (result.status, result.exit_code, result.steps_completed) == ("REFUSED", 5, 0)
    assert not gate(result, "train_eval_agree").passed


def test_patience(options, train):
    result = train(options(lr=1e-30, num_steps=12, steps_per_epoch=2, patience=2, min_epochs=1))
    assert (result.status, result.exit_code) == ("EARLY_STOP", 0)
    assert not gate(result, "patience").passed
    assert result.epochs_completed == 3


def test_a_target_that_is_met_stops_the_run(options, train, tmp_path):
    result = train(options(target_val_loss=100.0))
    assert (result.status, result.exit_code, result.steps_completed) == ("TARGET_MET", 0, 6)
    result = train(options(target_val_loss=100.0, stop_at_target=False, run_dir=tmp_path / "on"))
    assert (result.status, result.steps_completed) == ("TARGET_MET", 12)


def test_a_target_that_is_missed_is_no_failure_and_no_success(options, train):
    result = train(options(target_val_loss=0.001))
    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0)
    assert "not met" in result.detail
    assert "onverged" not in result.detail


def test_a_stream_that_is_cycled_says_so(options, train, make_shards, tmp_path):
    config = options(dataset=make_shards(tokens=1500), allow_shard_cycle=True)
    result = train(config)
    assert result.steps_completed == 12
    # 1500 ids: the last 5 of 46 windows are held out; the 1312 before make 40; 48 are visited.
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("the stream starts again: epoch 1 of its 40 windows") == 1


def test_a_stream_that_ends_is_no_silent_loss(options, train, make_shards, monkeypatch):
    """The preflight counts windows; this is what happens if it ever counted wrongly."""
    from apr.train.start import preflight

    monkeypatch.setattr(preflight, "_check_length", lambda *_: [])
    result = train(options(dataset=make_shards(tokens=1500)))
    assert (result.status, result.exit_code) == ("STREAM_EXHAUSTED", 5)
    assert result.steps_completed == 10
    assert not gate(result, "exhaustion").passed


def test_a_step_without_its_fields_fails_the_metrics_gate():
    from apr.train import gates

    good = {
        "step": 0,
        "train_loss": 1.0,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "tokens_per_sec": 5.0,
        "gpu_util_pct": None,
        "device": "cpu",
    }
    assert gates.metrics([good], 1).passed
    assert not gates.metrics([good | {"device": "cuda:0"}], 1).passed
    assert not gates.metrics([good], 2).passed
    assert not gates.metrics([good, good], 1).passed
    for name in ("train_loss", "grad_norm", "lr", "tokens_per_sec"):
        assert not gates.metrics([good | {name: None}], 1).passed


def test_steps_made_on_a_cpu_stay_complete_where_a_gpu_goes_on():
    from apr.train import gates

    step = {"train_loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_sec": 5.0}
    first = step | {"step": 0, "device": "cpu", "gpu_util_pct": None}
    second = step | {"step": 1, "device": "cuda:0", "gpu_util_pct": 97.0}
    assert gates.metrics([first, second], 2).passed
    assert not gates.metrics([first, second | {"gpu_util_pct": None}], 2).passed


def test_an_epoch_without_its_file_fails_the_artifact_gate(tmp_path):
    from apr.train import gates

    ckpt = tmp_path / "ckpt"
    ckpt.mkdir()
    (ckpt / "epoch-000.apr").write_bytes(b"x")
    assert gates.artifacts(tmp_path, 1).value == "epoch-000.metadata.json missing"
    (ckpt / "epoch-000.metadata.json").write_text("{}")
    assert gates.artifacts(tmp_path, 1).passed
    (ckpt / "epoch-000.apr").unlink()
    assert not gates.artifacts(tmp_path, 1).passed
    (ckpt / "epoch-000.metadata.json").write_text('{"pruned": true}')
    assert gates.artifacts(tmp_path, 1).passed


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", 989e12),
    ],
)
def test_a_peak_is_known_of_exactly_these_devices(monkeypatch, name, peak):
    import torch

    from apr.train.machine.device import peak_flops

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), "bf16") == peak


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token_count_attention_and_no_lookup(tied):
    """Qwen2.5-0.5B by hand: tied, the embedding is the head; untied, a head of the same size joins it."""
    from dataclasses import replace

    from apr.model.init import load_arch
    from apr.train.start.needs import flops_a_token, parameter_groups

    model = replace(load_arch("qwen2.5-0.5b", 151_936), tie_word_embeddings=tied)
    attention = 12 * 24 * 14 * 64 * 1024
    assert flops_a_token(model, parameter_groups(model), 1024) == 6 * 494_032_768 + attention

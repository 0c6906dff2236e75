"""Each gate passes and fails where it should, with the value it measured."""

import pytest


def test_divergence_fails_when_the_held_out_loss_doubles():
    from apr.train import gates

    assert gates.divergence([9.9], 10.0).passed
    assert not gates.divergence([10.1], 10.0).passed
    assert gates.divergence([1.0, 2.0], 10.0).passed
    assert not gates.divergence([1.0, 2.01], 10.0).passed
    after = gates.divergence([1.0, 2.5, 1.0], 10.0)
    assert (after.passed, after.value, after.threshold) == (False, 2.5, 2.0)
    assert gates.first_cap(None, 512) == pytest.approx(12.4766, abs=1e-4)


def test_a_step_with_missing_fields_fails_the_metrics_gate():
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


def test_cpu_steps_stay_complete_when_a_gpu_continues_the_run():
    from apr.train import gates

    step = {"train_loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_sec": 5.0}
    first = step | {"step": 0, "device": "cpu", "gpu_util_pct": None}
    second = step | {"step": 1, "device": "cuda:0", "gpu_util_pct": 97.0}
    assert gates.metrics([first, second], 2).passed
    assert not gates.metrics([first, second | {"gpu_util_pct": None}], 2).passed


def test_a_missing_epoch_file_fails_the_artifacts_gate(tmp_path):
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

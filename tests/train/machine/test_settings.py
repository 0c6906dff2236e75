"""torch's settings during a run, and after it."""

import os


def test_the_callers_settings_of_torch_change_nothing(short, train, tmp_path):
    import torch

    def bytes_of(name):
        config = short(run_dir=tmp_path / name)
        train(config)
        return (config.run_dir / "ckpt/epoch-001.apr").read_bytes()

    expected = bytes_of("plain")
    torch.set_default_dtype(torch.float64)
    try:
        assert bytes_of("float64") == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        assert bytes_of("no_grad") == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert bytes_of("inference") == expected


def test_deterministic_settings_are_restored(options, train, monkeypatch):
    import torch

    from apr.train import loop

    seen = []
    rate = loop.learning_rate

    def recording(*args, **kwargs):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return rate(*args, **kwargs)

    monkeypatch.setattr(loop, "learning_rate", recording)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    train(options(num_steps=2, eval_every=2, deterministic=True))
    assert seen == [(True, ":4096:8")] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch.utils.deterministic.fill_uninitialized_memory == fills

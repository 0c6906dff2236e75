"""Estimates of memory, disk space and FLOPs."""

import pytest


def test_a_full_disk_is_refused_unless_the_checkpoints_exist(options, train, monkeypatch):
    """Checkpoints that a resumed run already has need no more space."""
    from types import SimpleNamespace

    from apr.errors import RefusedError
    from apr.train import plan
    from apr.train.start import needs

    train(options(num_steps=6))
    size = (options().run_dir / "ckpt" / "epoch-000.apr").stat().st_size
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    with pytest.raises(RefusedError, match=r"run: checkpoints need 2\.\d MB.* 1\.\d MB"):
        plan(options(force=True))
    assert train(options(resume=True, extend=True)).steps_completed == 12


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_count_attention_but_no_lookup(tied):
    """Qwen2.5-0.5B by hand: a tied embedding is also the head, an untied one has another of its size."""
    from dataclasses import replace

    from apr.model.init import load_arch
    from apr.train.start.needs import flops_per_token, parameter_groups

    model = replace(load_arch("qwen2.5-0.5b", 151_936), tie_word_embeddings=tied)
    attention = 12 * 24 * 14 * 64 * 1024
    assert flops_per_token(model, parameter_groups(model), 1024) == 6 * 494_032_768 + attention

"""Memory that runs out is reported with the flags that help."""

import pytest


def test_out_of_memory_is_one_line_with_flags_that_help(options, train, monkeypatch):
    import torch

    from apr.errors import RefusedError
    from apr.train import step
    from apr.train.prepared import Prepared

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    with monkeypatch.context() as patched:
        patched.setattr(step, "add_gradients", too_much)
        result = train(options(batch_size=6, grad_accum=2))
    assert (result.status, result.exit_code) == ("FAILED", 1)
    assert "--batch-size 3 --grad-accum 4" in result.detail
    monkeypatch.setattr(Prepared, "build_model", too_much)
    with pytest.raises(RefusedError, match="weights"):
        train(options(force=True))

"""Memory that runs out is reported with the flags that help."""

import pytest


def test_out_of_memory_is_one_line_with_flags_that_help(options, train, monkeypatch):
    import torch

    from apr.errors import RefusedError
    from apr.train import step
    from apr.train.prepared import Prepared

    def too_much(*_, **__):
        # As memory runs out within the capture of a CUDA graph, which ends with an error of its own.
        class Capture:
            def __enter__(self):
                pass

            def __exit__(self, *_):
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        with Capture():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 MiB.")

    with monkeypatch.context() as patched:
        patched.setattr(step, "add_gradients", too_much)
        result = train(options(batch_size=6, grad_accum=2))
    assert (result.status, result.exit_code) == ("FAILED", 1)
    assert "--micro-batch 4 " in result.detail
    assert "12 windows per step" in result.detail
    monkeypatch.setattr(Prepared, "build_model", too_much)
    with pytest.raises(RefusedError, match="weights"):
        train(options(force=True))


@pytest.mark.parametrize(
    ("message", "nbytes"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 318636032 bytes.",
            318636032,
        ),
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79 GiB", 3 * 2**29),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 0),
        ("CUDA error: out of memory", 0),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_memory_that_ran_out_is_recognized_with_what_was_asked_for(message, nbytes):
    import torch

    from apr.train.machine.out_of_memory import is_out_of_memory, requested_bytes

    error = (torch.OutOfMemoryError if message.startswith("CUDA out") else RuntimeError)(message)
    assert is_out_of_memory(error) == (nbytes is not None)
    assert requested_bytes(error) == (nbytes or 0)

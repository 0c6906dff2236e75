"""What is known of a device, and what is refused."""

import sys

import pytest


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", 989e12),
    ],
)
def test_the_peak_is_known_for_exactly_these_devices(monkeypatch, name, peak):
    import torch

    from apr.train.machine.device import peak_flops

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), "bf16") == peak


def test_a_gpu_without_utilization_is_refused(monkeypatch):
    from types import SimpleNamespace

    import torch

    from apr.errors import UnavailableError
    from apr.train.machine import device

    class NVMLError(Exception):
        pass

    def unsupported(_):
        raise NVMLError("Not Supported")

    driver = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0"))
    with pytest.raises(UnavailableError, match="utilization"):
        device.Utilization(torch.device("cuda"))


@pytest.mark.parametrize(
    ("threads", "asked", "words"),
    [
        ("as many as CPUs", None, None),
        ("as many as CPUs", "2", None),
        ("half", None, None),
        ("half", "1", "OMP_NUM_THREADS is 1"),
        ("twice", None, "set OMP_NUM_THREADS="),
        ("twice", "64", "set OMP_NUM_THREADS="),
    ],
)
def test_threads_that_do_not_fit_the_cpus_are_said(monkeypatch, threads, asked, words):
    """More threads than a container has CPUs wait for each other; fewer leave some of them idle."""
    import os

    import torch

    from apr.train.machine import device

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    torch.set_num_threads({"as many as CPUs": 2, "half": 1, "twice": 4}[threads])
    try:
        text = device.describe(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert ("CPU" in text) == (words is not None)
    assert words is None or words in text

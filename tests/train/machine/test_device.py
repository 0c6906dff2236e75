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

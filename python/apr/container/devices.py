"""Devices by the names that torch gives them."""

from __future__ import annotations

import torch

from apr.errors import DeviceError

# Errors of torch's backends are long; the start says what is missing.
_SHOWN = 120


def parse_device(device: torch.device | str | int) -> torch.device:
    """Return the device after checking that this machine has it.

    Args:
        device: such as "cpu", "cuda:1", or the number of a CUDA device.

    Raises:
        DeviceError: torch does not know the name, or this machine has no such device.
    """
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"unknown device {device!r}; use a torch device such as 'cpu' or 'cuda:0'"
        ) from None
    if parsed.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise DeviceError(f"device {parsed} is not available: torch sees no CUDA device")
        # `cuda` without a number stands for the current device, of which there is at least one.
        if (parsed.index or 0) >= count:
            raise DeviceError(f"device {parsed} is not available: torch sees cuda:0 to cuda:{count - 1}")
    elif parsed.type != "cpu":
        # Only an allocation tells whether another backend works here.
        try:
            torch.empty(0, device=parsed)
        except Exception as error:  # noqa: BLE001 (each backend raises errors of its own)
            reason = str(error).partition("\n")[0].strip()[:_SHOWN]
            raise DeviceError(f"device {parsed} is not available: {reason}") from None
    return parsed

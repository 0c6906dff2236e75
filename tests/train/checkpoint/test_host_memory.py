"""The memory that a checkpoint is copied to."""

import pytest


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_copies_stay_while_the_tensors_change_and_take_memory_once(device, prepared):
    check_copies(device, prepared=prepared)


def check_copies(device, *, prepared):
    import torch

    from apr.train.checkpoint.host_memory import HostMemory

    tensors = {
        "weight": torch.arange(70, dtype=torch.float32, device=device).reshape(7, 10),
        "step": torch.tensor(3),
        "state": torch.arange(17, dtype=torch.uint8, device=device),
    }
    memory = HostMemory()
    if prepared:
        memory.prepare(tensors)
    copies = memory.copy(tensors)
    assert all(copies[name].equal(tensor.cpu()) for name, tensor in tensors.items())
    assert {copy.device.type for copy in copies.values()} == {"cpu"}
    assert copies["weight"].is_pinned() == (device == "cuda")
    tensors["weight"] += 1
    assert copies["weight"][0, 1] == 1
    again = memory.copy(tensors)
    assert again["weight"][0, 1] == 2
    assert again["weight"].data_ptr() == copies["weight"].data_ptr()

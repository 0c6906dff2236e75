"""to_torch: a state dict in new memory, on any device."""

import numpy as np
import pytest
import torch

import apr
from apr.errors import UnavailableError


def test_a_state_dict_is_in_new_memory(data, tmp_path):
    for path in sorted((data / "aprender-0.72").glob("qwen2*.apr")):
        with apr.load(path) as file:
            state = file.to_torch()
            assert list(state) == list(file)
            for name, values in state.items():
                assert torch.equal(values, file[name])
                assert values.untyped_storage().nbytes() == values.nbytes
            some = list(file)[2:4]
            half = file.to_torch(dtype=torch.bfloat16, names=some)
            assert list(half) == some
            assert all(values.dtype == torch.bfloat16 for values in half.values())
    apr.save({"i": np.arange(3), "f": np.zeros(2)}, tmp_path / "m.apr")
    state = apr.load(tmp_path / "m.apr").to_torch(dtype=torch.float16)
    assert [values.dtype for values in state.values()] == [torch.float16, torch.int64]


def test_a_missing_device_is_an_unavailable_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    apr.save({"x": np.zeros(3)}, tmp_path / "m.apr")
    with pytest.raises(UnavailableError, match="cuda:0"):
        apr.load(tmp_path / "m.apr").to_torch("cuda:0")


def test_wrong_arguments_are_one_line(tmp_path):
    apr.save({"x": np.zeros(3)}, tmp_path / "m.apr")
    file = apr.load(tmp_path / "m.apr")
    for act, kind, says in [
        (lambda: file.to_torch("tpu"), UnavailableError, "'tpu'"),
        (lambda: file.to_torch(dtype="bf16"), TypeError, "'bf16'"),
        (lambda: file.to_torch(names="x"), TypeError, "names"),
    ]:
        with pytest.raises(kind, match=says) as caught:
            act()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.cuda
def test_a_state_dict_on_a_gpu(tmp_path):
    random = torch.Generator().manual_seed(0)
    model = {
        "large": torch.rand(9 << 20, generator=random),  # more than one buffer
        "bf16": torch.rand(300, 7, generator=random).bfloat16(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        **{f"small.{n}": torch.full((n + 1,), float(n)) for n in range(300)},
    }
    apr.save(model, tmp_path / "m.apr")
    state = apr.load(tmp_path / "m.apr").to_torch("cuda:0")
    assert set(state) == set(model)
    for name, values in state.items():
        assert values.device == torch.device("cuda:0")
        assert torch.equal(values.cpu(), model[name])

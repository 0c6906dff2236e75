"""The CPU's step of one sequence: the logits of the modules of each family, and no module passed over."""

import pytest
from tests.model.tiny import ours, transformers_model

from apr.model.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_computes_what_the_modules_do(family):
    """Over positions within the window of 8, at its edge, and past it."""
    import torch

    from apr.model.cache import KvCache
    from apr.model.host_step import HostStep

    model = ours(transformers_model(family)).eval()
    ids = torch.arange(3, 33)[None]
    modules, own = (KvCache(model.config, 1, 40, ids.device, torch.float32) for _ in range(2))
    with torch.no_grad():
        model(ids[:, :6], modules)
        model(ids[:, :6], own)
        step = HostStep(model, own)
        for at in range(6, 30):
            expected = model(ids[:, at : at + 1], modules)[:, -1]
            assert (step.logits(ids[:, at : at + 1]) - expected).norm() <= 1e-5 * expected.norm(), at


def scale_queries(model):
    """A hook, as libraries for adapters and for inspection use it."""
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _module, _inputs, out: out * -30)


def replace_values(model):
    import torch

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.weight, self.bias = base.weight, base.bias

        def forward(self, x):
            return self.base(x) * -2

    attention = model.model.layers[1].self_attn
    attention.v_proj = Adapter(attention.v_proj)


def override_the_mlp(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: x * 0.5


@pytest.mark.parametrize("change", [scale_queries, replace_values, override_the_mlp])
def test_a_changed_module_takes_part_in_generation(change):
    import torch

    import apr

    model = ours(transformers_model("llama", initializer_range=0.4)).eval()
    before = apr.generate(model, [5, 6, 7], max_tokens=8)[0].ids
    change(model)
    ids = [5, 6, 7]
    with torch.no_grad():
        for _ in range(8):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert apr.generate(model, [5, 6, 7], max_tokens=8)[0].ids == ids[3:] != before

"""The layers written out for a GPU, against autograd over the decoder; on a CPU in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", ["llama", "qwen2", "smollm3"])
def test_fast_layers_are_the_decoder(family):
    pytest.importorskip("triton")
    # In a process of its own: Triton decides when it is imported whether it interprets.
    code = f"from tests.train.test_fast_layers import check_layers; check_layers({family!r}, 'cpu')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True
    )


def check_layers(family, device):
    """Compare hidden states and all gradients in float32, on sizes that fill no block."""
    import torch
    from tests.model.tiny import ours, transformers_model

    from apr.model.decoder import Decoder
    from apr.train.fast_layers import FastLayers

    changes = {"attention_bias": False, "use_sliding_window": False, "num_hidden_layers": 2}
    if family == "qwen2":
        changes["layer_types"] = None
    if family == "smollm3":
        changes["no_rope_layers"] = [1, 0]
    reference = ours(transformers_model(family, **changes)).to(device)
    for recomputes in (False, True):
        model = Decoder.empty(reference.config, device, torch.float32)
        model.model.recomputes = recomputes
        assert FastLayers.fits(model.config)
        layers = FastLayers(model)
        # After the projections became views of the joined ones, which this fills.
        model.load_state_dict(reference.state_dict())
        for shape in ((3, 23), (2, 80)):
            # Twice: nothing may be left of the backward pass before.
            ids = torch.randint(97, shape, generator=torch.Generator().manual_seed(0)).to(device)
            for parameter in reference.parameters():
                parameter.grad = None
            embedded = reference.model.embed_tokens(ids).detach().requires_grad_()
            hook = reference.model.embed_tokens.register_forward_hook(lambda *_, rows=embedded: rows)
            expected = reference.hidden(ids).flatten(0, 1)
            hook.remove()
            gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(device)
            expected.backward(gradient)
            with torch.no_grad():
                actual = layers.forward(ids)
                rows = layers.backward(gradient.clone(), ids.shape)
            assert_near(actual, expected)
            assert_near(rows, embedded.grad.flatten(0, 1))
            gradients = layers.gradients()
            wanted = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
            assert gradients.keys() == wanted.keys()
            for name, values in wanted.items():
                assert_near(gradients[name], values, name)


def assert_near(actual, expected, name=""):
    """Compare by the norm of the difference: float32 sums in another order."""
    assert actual.shape == expected.shape
    difference = ((actual - expected).norm() / expected.norm()).item()
    assert difference < 1e-5, (name, difference)


@pytest.mark.parametrize(
    "family", ["qwen3", "mistral", "gemma2", "gemma3_text", "granite", "olmo2", "phi3", "exaone4", "glm4"]
)
def test_other_forms_of_layers_are_compiled(family):
    pytest.importorskip("triton")
    from tests.model.tiny import ours, transformers_model

    from apr.train.fast_layers import FastLayers

    assert not FastLayers.fits(ours(transformers_model(family)).config)

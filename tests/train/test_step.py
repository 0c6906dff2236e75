"""One step: what it changes, and what it leaves alone."""

import math

import pytest
from tests.train.conftest import BASE


def make(device, *, compiled=False, precision="fp32", recomputes=False):
    import torch

    from apr.model import Decoder
    from apr.train import PretrainConfig
    from apr.train.optimizer import make_optimizer
    from apr.train.step import Step

    model = Decoder.from_apr(BASE, device)
    optimizer = make_optimizer(model, PretrainConfig(dataset="-", run_dir="-", init=BASE))
    step = Step(
        model, optimizer, precision=precision, grad_clip=1.0, compiled=compiled, recomputes=recomputes
    )
    ids = torch.randint(0, 512, (2, 17), generator=torch.Generator().manual_seed(0))
    return model, optimizer, step, ids


def state(model, optimizer):
    """Return copies of the weights, moments and steps."""
    copies = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        copies |= {f"{name}.{key}": value.clone() for key, value in optimizer.state[parameter].items()}
    return copies


@pytest.mark.parametrize("bad", ["limit", "gradient"])
def test_a_bad_step_changes_nothing(bad):
    check_bad_step(bad, "cpu")


def check_bad_step(bad, device, *, compiled=False, precision="fp32"):
    """Take a step whose loss is above the limit, or whose gradient is infinite, between two good ones."""

    import torch

    model, optimizer, step, ids = make(device, compiled=compiled, precision=precision)
    step.accumulate([ids], 32)
    loss = step.loss()
    assert step.update(1e-3).updated
    before = state(model, optimizer)
    step.accumulate([ids], 32)
    again = step.loss()
    assert again < loss
    if bad == "gradient":
        step.gradients()["model.norm.weight"][3] = math.inf
        outcome = step.update(1e-3)
        assert not math.isfinite(outcome.grad_norm)
    else:
        outcome = step.update(1e-3, loss_limit=again - 0.01)
        assert outcome.train_loss == again
    assert not outcome.updated
    for name, value in state(model, optimizer).items():
        assert torch.equal(value, before[name]), name
    step.accumulate([ids], 32)
    assert step.update(1e-3, loss_limit=again + 0.01).updated
    assert all(p["step"].item() == 2 for p in optimizer.state.values())


def test_clipping_equals_torchs():
    import torch

    model, optimizer, step, ids = make("cpu")
    step.accumulate([ids], 1)  # far above the limit
    reference = [p.grad.clone() for p in model.parameters()]
    clones = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for clone, gradient in zip(clones, reference, strict=True):
        clone.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(clones, 1.0)
    assert norm > 10
    assert step.update(0.0).grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for parameter, clone in zip(model.parameters(), clones, strict=True):
        moment = optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * clone.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(precision):
    gradients, kept = check_checkpointing("cpu", precision=precision)
    for name, gradient in gradients[False].items():
        assert gradients[True][name].equal(gradient), name
    # The layers' inputs and what follows the last layer; two layers keep more than ten tensors each.
    assert kept[True] < kept[False] / 3


def check_checkpointing(device, *, precision, compiled=False):
    """Return the gradients of two micro-batches without and with checkpointing, and the tensors kept."""
    import torch

    gradients, kept = {}, {False: 0, True: 0}
    for recomputes in (False, True):
        _, _, step, ids = make(device, precision=precision, compiled=compiled, recomputes=recomputes)

        def keep(tensor, recomputes=recomputes):
            kept[recomputes] += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step.accumulate([ids, ids.flip(0) + 1], 64)
        gradients[recomputes] = {name: value.clone() for name, value in step.gradients().items()}
    return gradients, kept

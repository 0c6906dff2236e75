"""The learning rate of each step."""

import pytest

from apr.train.schedule import learning_rate

RUNS = [(steps, warmup) for steps in (1, 2, 3, 10, 37) for warmup in (0, 1, 2, 5, 9, 36) if warmup < steps]


@pytest.mark.parametrize(("steps", "warmup"), RUNS)
@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0])
def test_the_rates_are_those_of_transformers_counted_from_step_1(steps, warmup, ratio):
    import torch
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, max(1, warmup), steps, min_lr_rate=ratio
    ).lr_lambdas[0]
    ours = [
        learning_rate(step, peak=2e-3, warmup_steps=warmup, num_steps=steps, min_ratio=ratio)
        for step in range(steps)
    ]
    assert ours == pytest.approx([2e-3 * theirs(step + 1) for step in range(steps)], rel=1e-12)
    assert max(ours) == pytest.approx(2e-3)


@pytest.mark.parametrize(("steps", "warmup"), RUNS)
def test_every_run_trains_at_the_peak_and_ends_at_the_minimum(steps, warmup):
    """A run of one step once trained at the minimum, 1 % of --lr, and nothing else."""
    rates = [
        learning_rate(step, peak=1.0, warmup_steps=warmup, num_steps=steps, min_ratio=0.01)
        for step in range(steps)
    ]
    assert rates[max(1, warmup) - 1] == 1.0
    assert rates[-1] == (pytest.approx(0.01) if steps > max(1, warmup) else 1.0)
    assert all(rate > 0 for rate in rates)


def test_a_run_shortened_to_less_than_its_warmup_keeps_the_rates_of_the_warmup():
    rates = [learning_rate(s, peak=1.0, warmup_steps=10, num_steps=4, min_ratio=0.01) for s in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])

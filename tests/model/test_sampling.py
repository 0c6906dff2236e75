"""Sampling: transformers' filters, and a choice that has the distribution it should have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.model.sampling import GenerateOptions, choose, filtered, log_probabilities, uniforms


def logits_of(seed, rows=3, width=50):
    import torch

    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 80),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p, min_p):
    from transformers.generation import logits_process as theirs

    logits = expected = logits_of(seed)
    expected = theirs.TemperatureLogitsWarper(temperature)(None, expected)
    if top_k is not None:
        expected = theirs.TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None and top_p < 1:
        expected = theirs.TopPLogitsWarper(top_p)(None, expected)
    if min_p is not None:
        expected = theirs.MinPLogitsWarper(min_p)(None, expected)
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert filtered(logits, options).equal(expected)


@given(
    seed=st.integers(0, 10_000),
    uniform=st.floats(0, 1, exclude_max=True),
    top_k=st.none() | st.integers(1, 5),
)
def test_a_choice_was_not_filtered_out(seed, uniform, top_k):
    import torch

    options = GenerateOptions(temperature=1.0, top_k=top_k)
    logits = logits_of(seed)
    ids = choose(logits, options, torch.full((3,), uniform, dtype=torch.float64))
    assert filtered(logits, options).gather(1, ids[:, None]).isfinite().all()


def test_choices_have_the_probabilities_of_the_softmax():
    import torch

    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0]])
    steps = 10_000
    even = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    ids = choose(logits.expand(steps, -1), GenerateOptions(temperature=1.0), even)
    shares = torch.bincount(ids, minlength=4) / steps
    assert shares.tolist() == pytest.approx(logits.softmax(-1)[0].tolist(), abs=2e-4)


def test_temperature_zero_takes_the_likeliest():
    import torch

    logits = logits_of(0)
    ids = choose(logits, GenerateOptions(), torch.zeros(3, dtype=torch.float64))
    assert ids.equal(logits.argmax(-1))


def test_log_probabilities_are_those_of_the_softmax():
    logits = logits_of(1)
    ids = logits.argmin(-1)
    expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    assert log_probabilities(logits, ids).tolist() == pytest.approx(expected.tolist())


def test_each_sequence_has_numbers_of_its_own():
    few, many = (uniforms(GenerateOptions(temperature=1.0, seed=2**63 - 1, n=n)) for n in (1, 3))
    assert few[0].equal(many[0])
    assert not many[0].equal(many[1])
    longer = uniforms(GenerateOptions(temperature=1.0, seed=2**63 - 1, max_tokens=200))
    assert longer[0, :128].equal(few[0])


def test_another_sampling_option_implies_a_temperature():
    assert GenerateOptions().temperature == 0
    assert GenerateOptions(seed=1).temperature == 0
    assert GenerateOptions(top_p=0.9).temperature == 1
    assert GenerateOptions(n=2).temperature == 1

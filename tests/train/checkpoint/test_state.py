"""The counters and history of a run."""

import math
import statistics

import pytest
from tests.train.conftest import BASE

WINDOW = 100


def test_a_model_file_is_not_a_checkpoint():
    from apr.container.load import load
    from apr.errors import RefusedError
    from apr.train.checkpoint.state import state_of

    with pytest.raises(RefusedError, match="no training state"):
        state_of(load(BASE))


def test_the_limit_is_six_sigma_over_the_last_hundred():
    from apr.train.checkpoint.state import RunState

    state = RunState()
    losses = [3 + math.sin(n) for n in range(150)]
    for n, loss in enumerate(losses):
        assert (state.loss_limit is None) == (n < WINDOW)
        state.add_step(loss, 1.0, 10)
    last = losses[-WINDOW:]
    assert state.loss_limit == pytest.approx(statistics.fmean(last) + 6 * statistics.pstdev(last), rel=1e-12)
    assert state.spikes == 0


def test_a_loss_that_stays_high_stops_being_a_spike():
    from apr.train.checkpoint.state import RunState

    state = RunState()
    for n in range(WINDOW):
        state.add_step(2 + 0.01 * (n % 2), 1.0, 10)
    for _ in range(20):
        state.add_step(8.0, 1.0, 10)
    assert 1 <= state.spikes < 5

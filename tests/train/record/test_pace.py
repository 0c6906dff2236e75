"""A run says once that it became far slower than it was."""

import io

import pytest

from apr.train.record.pace import Pace

WARM_UP = [9.0, 9.0]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (WARM_UP + [1.0] * 100, []),
        (WARM_UP + [1.0] * 50 + [1.9] * 100, []),
        (WARM_UP + [1.0] * 10 + [2.1] * 100, [2 + 10 + 10]),
        (WARM_UP + [1.0] * 50 + [3.0] * 100, [2 + 50 + 10]),
        # A checkpoint slows a few steps down.
        (WARM_UP + ([1.0] * 40 + [5.0] * 8) * 5, []),
        # It was slow from the start, then fast, then slow again.
        (WARM_UP + [3.0] * 30 + [1.0] * 30 + [3.0] * 30, [2 + 60 + 10]),
        (WARM_UP + [1.0] * 9, []),
    ],
    ids=["steady", "a bit slower", "slow early", "slow", "checkpoints", "slow, fast, slow", "short"],
)
def test_only_steps_that_stay_far_slower_are_told_and_only_once(seconds, told):
    pace = Pace()
    steps = [step for step, duration in enumerate(seconds) if pace.add(duration) is not None]
    # The median of twenty steps is slow once more than half of them are.
    assert steps == told


def test_the_line_names_both_speeds_and_the_load(options):
    import torch

    from apr.train.record.recorder import Recorder
    from apr.train.record.report import Report
    from apr.train.step import StepOutcome

    config, out = options().resolved("fp32", compiled=False), io.StringIO()
    config.run_dir.mkdir()
    with Recorder(config, torch.device("cpu"), 1, Report(out), started=0.0) as recorder:
        for step, seconds in enumerate([0.5] * 20 + [1.5] * 40):
            recorder.step(
                step, StepOutcome(1.0, 1.0, True), lr=1.0, loss_limit=None, tokens_seen=1, seconds=seconds
            )
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("warning: ")]
    for words in ("1.5 s", "3.0 times", "0.5 s", "load average", "CPU"):
        assert words in line

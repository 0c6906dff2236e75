"""Shards for 50 steps of 12 windows, and the options of a run on them."""

import pytest
from tests.train.conftest import BASE, SEQ, write_shards

from apr.train import PretrainConfig

WINDOWS, STEPS = 12, 50


@pytest.fixture
def note(record_property):
    """Note a cell of the table in docs/several-gpus.md, which docs/rank_table.py writes."""

    def write(ranks, engine, precision, values, expected):
        difference = max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))
        record_property("cell", f"{ranks}|{engine}|{precision}|{difference}")

    return write


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with shards for 50 steps, and for an evaluation of more groups than ranks."""
    directory = tmp_path_factory.mktemp("ranks")
    write_shards(directory / "shards", tokens=60_000)
    return directory


@pytest.fixture(scope="module")
def options(directory):
    """Return the options of a run of 50 steps of 12 windows, changed by keywords."""

    def make(run, **changes):
        values = {
            "init": BASE,
            "dataset": directory / "shards",
            "run_dir": directory / run,
            "num_steps": STEPS,
            "eval_every": 25,
            "global_batch": WINDOWS,
            "seq_length": SEQ,
            "val_tokens": 5000,
            "lr": 2e-3,
            "device": "cpu",
        }
        return PretrainConfig(**values | changes)

    return make

"""With --deterministic, the number of ranks changes no bit of what a run writes."""

import pytest
from tests.train.conftest import checkpoints
from tests.train.parallel import ranks

from apr.train.parallel.tree import SubtreeSum, pairwise_sum, run_length

# Micro-batches of a step: 4, and 12 of which three in a row are added one after another.
SPLITS = (3, 1)


@pytest.fixture(scope="module")
def deterministic(options):
    """Return the options of a deterministic run of 12 windows a step."""

    def make(run, batch_size, **changes):
        return options(run, batch_size=batch_size, deterministic=True, num_steps=8, eval_every=4, **changes)

    return make


@pytest.fixture(scope="module")
def runs(deterministic):
    """The directories of the same runs on 1, 2 and 4 ranks; the last ones were stopped on 4 and end on 2."""
    directories = {}
    for size in (1, 2, 4):
        configs = [deterministic(f"tree-{size}-{n}", n) for n in SPLITS]
        ranks.Ranks(size, ranks.train, *configs).results()
        directories |= {(size, n): config.run_dir for n, config in zip(SPLITS, configs, strict=True)}
    stopped = deterministic("stopped", 1)
    ends = ranks.Ranks(4, ranks.interrupt, stopped, 3).results()
    assert {end[:2] for end in ends} == {("INTERRUPTED", 143)}
    assert (stopped.run_dir / "ckpt/step-00000003.apr").exists()
    ranks.Ranks(2, ranks.train, deterministic("stopped", 1, resume=True)).results()
    return directories | {("4, then 2", 1): stopped.run_dir}


@pytest.mark.parametrize(("size", "batch_size"), [(2, 3), (4, 3), (2, 1), (4, 1), ("4, then 2", 1)], ids=str)
def test_any_number_of_ranks_writes_the_same_bytes(runs, size, batch_size, record_property):
    alone, shared = checkpoints(runs[1, batch_size]), checkpoints(runs[size, batch_size])
    assert list(alone) == ["epoch-000.apr", "epoch-001.apr"] or len(alone) == 2
    assert shared == alone
    record_property("cell", f"{size}|--deterministic, checkpoints|fp32|0.0")


def test_three_ranks_have_no_complete_subtrees_and_are_refused(deterministic):
    ends = ranks.Ranks(3, ranks.train, deterministic("three", 4)).results()
    assert all(
        (status, code) == ("refused", 2) and "power of two" in text for ((status, code, text),) in ends
    )


@pytest.mark.parametrize("leaves", [1, 2, 4, 8, 16])
def test_a_subtree_adds_neighbors_first(leaves):
    """Against numpy: the sum of the sums of both halves. The root stays where it was in the step before."""
    import numpy as np
    import torch

    def halves(values):
        if len(values) == 1:
            return values[0]
        middle = len(values) // 2
        return halves(values[:middle]) + halves(values[middle:])

    values = np.random.default_rng(leaves).standard_normal((leaves, 5)).astype(np.float32)
    subtree, addresses = SubtreeSum(), set()
    for _ in range(2):
        for value in values:
            subtree.add({"w": torch.tensor(value)}, torch.tensor(float(value[0]), dtype=torch.float64))
        root, loss = subtree.root()
        addresses.add(root["w"].data_ptr())
        assert root["w"].numpy().tobytes() == halves(values).tobytes()
        assert loss.item() == halves(values[:, 0].astype(np.float64))
    assert len(addresses) == 1
    assert (
        pairwise_sum([torch.tensor(value) for value in values]).numpy().tobytes() == halves(values).tobytes()
    )


@pytest.mark.parametrize(
    ("micro_batches", "run"), [(1, 1), (2, 1), (3, 3), (8, 1), (12, 3), (24, 3), (10, 5)]
)
def test_an_odd_factor_is_added_in_a_row(micro_batches, run):
    assert run_length(micro_batches) == run

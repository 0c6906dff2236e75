"""On two GPUs: NCCL within captured graphs, the fixed tree, and a divided model."""

import pytest
from tests.train.conftest import checkpoints, step_records
from tests.train.parallel import ranks
from tests.train.parallel.conftest import WINDOWS

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def two_gpus():
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 GPUs; this machine has {torch.cuda.device_count()}")


def trained(size, config):
    (first, *_), *_ = ranks.Ranks(size, ranks.train, config).results()
    assert first[:2] == ("BUDGET_SPENT", 0), first
    return config.run_dir


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [{"compile": True}, {"compile": False}, {"shard_model": True}],
    ids=["captured", "plain", "divided"],
)
def test_two_gpus_compute_what_one_does(options, precision, changes):
    name = f"nccl-{precision}-{'-'.join(changes)}-{changes.get('compile')}"
    common = {"device": "cuda", "precision": precision, "num_steps": 20, **changes}
    alone = step_records(trained(1, options(f"{name}-1", batch_size=WINDOWS, **common)))
    shared = step_records(trained(2, options(f"{name}-2", batch_size=WINDOWS // 2, **common)))
    for field in ("train_loss", "grad_norm"):
        expected = [record[field] for record in alone]
        assert [record[field] for record in shared] == pytest.approx(
            expected, rel=1e-4 if precision == "fp32" else 3e-2
        )


@pytest.mark.parametrize("batch_size", [6, 3])
@pytest.mark.parametrize("compiled", [True, False], ids=["captured", "plain"])
def test_two_gpus_write_the_bytes_of_one(options, batch_size, compiled):
    common = {"device": "cuda", "compile": compiled, "deterministic": True, "num_steps": 8, "eval_every": 4}
    runs = [
        trained(size, options(f"nccl-tree-{batch_size}-{compiled}-{size}", batch_size=batch_size, **common))
        for size in (1, 2)
    ]
    assert checkpoints(runs[1]) == checkpoints(runs[0])

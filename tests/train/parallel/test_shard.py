"""--shard-model: each rank has a part of the model, and the run is the same."""

import json

import pytest
from tests.train.conftest import DATA, checkpoints, records, step_records
from tests.train.parallel import ranks
from tests.train.parallel.conftest import WINDOWS

import apr
import apr.errors

UNTIED = DATA / "from_safetensors_qwen2_untied.apr"


@pytest.fixture(scope="module")
def sharded_runs(options):
    """The same run in one process and, divided, on 2 to 4 ranks."""
    runs = {}
    for size in (1, 2, 3, 4):
        config = options(f"sharded-{size}", batch_size=WINDOWS // size, shard_model=True)
        ends = ranks.Ranks(size, ranks.train, config).results()
        assert {end[:2] for of_rank in ends for end in of_rank} == {("BUDGET_SPENT", 0)}, ends
        runs[size] = config.run_dir
    return runs


@pytest.mark.parametrize("size", [2, 3, 4])
def test_losses_of_fifty_steps_are_those_of_one_process(sharded_runs, size, note):
    alone, shared = (step_records(sharded_runs[n]) for n in (1, size))
    for field in ("train_loss", "grad_norm"):
        expected = [record[field] for record in alone]
        assert [record[field] for record in shared] == pytest.approx(expected, rel=1e-5)
        if field == "train_loss":
            note(size, "--shard-model", "fp32", [record[field] for record in shared], expected)
    first = [records(sharded_runs[n])[0]["val_loss"] for n in (1, size)]
    assert first[0] == first[1]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_checkpoints_are_the_same_files(sharded_runs, size):
    """Their tensors have the same names, order and shapes, and nearly the same values; each file verifies."""
    for name in checkpoints(sharded_runs[1]):
        alone, shared = (apr.load(sharded_runs[n] / "ckpt" / name, verify="full") for n in (1, size))
        assert list(shared) == list(alone)
        for tensor in alone:
            assert shared[tensor].shape == alone[tensor].shape
            # As a whole: AdamW divides gradients that are nearly 0 by nearly 0, so that single values differ.
            expected = alone[tensor].double()
            difference = (shared[tensor].double() - expected).norm()
            assert difference <= 1e-2 * expected.norm(), tensor


@pytest.fixture(scope="module")
def moved_run(options):
    """A run of an untied model in bfloat16 that was divided on 4, whole on 2 and divided on 3 ranks."""
    common = {"init": UNTIED, "precision": "bf16", "num_steps": 9, "eval_every": 3, "save_dtype": "bf16"}
    whole = options("whole", batch_size=WINDOWS, **common)
    ranks.Ranks(1, ranks.train, whole).results()
    first = options("moved", batch_size=3, shard_model=True, **common)
    assert ranks.Ranks(4, ranks.interrupt, first, 2).results()[0][:2] == ("INTERRUPTED", 143)
    second = options("moved", batch_size=3, resume=True, **common)
    assert ranks.Ranks(2, ranks.interrupt, second, 3).results()[0][:2] == ("INTERRUPTED", 143)
    third = options("moved", batch_size=4, shard_model=True, resume=True, **common)
    assert ranks.Ranks(3, ranks.train, third).results()[0][0][:2] == ("BUDGET_SPENT", 0)
    return whole.run_dir, first.run_dir


def test_a_run_moves_between_engines_and_numbers_of_ranks(moved_run, note):
    alone, moved = (step_records(run) for run in moved_run)
    assert [record["step"] for record in moved] == list(range(9))
    expected = [record["train_loss"] for record in alone]
    assert [record["train_loss"] for record in moved] == pytest.approx(expected, rel=2e-3)
    losses = [record["train_loss"] for record in moved]
    note("4, 2, then 3", "--shard-model, all-reduce, --shard-model", "bf16", losses, expected)
    result = json.loads((moved_run[1] / "result.json").read_text())
    assert result["export"] == "final.apr"
    assert apr.verify(moved_run[1] / "final.apr").ok


@pytest.mark.parametrize("changes", [{"deterministic": True}, {"sample_prompt": "a"}], ids=str)
def test_what_a_divided_model_cannot_do_is_refused(options, changes):
    with pytest.raises(apr.errors.OptionsError, match="--shard-model"):
        options("x", shard_model=True, **changes)

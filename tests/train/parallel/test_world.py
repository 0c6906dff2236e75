"""Runs on several ranks: the numbers of one process, one voice, and the same files."""

import json
from pathlib import Path

import pytest
from tests.train.conftest import SEQ, records, step_records
from tests.train.parallel import ranks
from tests.train.parallel.conftest import STEPS, WINDOWS

SIZES = (2, 3, 4)


@pytest.fixture(scope="module")
def equal_runs(options):
    """The directories of the same run on 1 to 4 ranks, by their number and the precision."""
    runs = {}
    for size in (1, *SIZES):
        # Two ranks have two micro-batches each, which are added up before the ranks are.
        batch_size = 3 if size == 2 else WINDOWS // size
        configs = [options(f"{size}-fp32", batch_size=batch_size, precision="fp32")]
        if size < 3:
            configs.append(options(f"{size}-bf16", batch_size=batch_size, precision="bf16", num_steps=10))
        ends = ranks.Ranks(size, ranks.train, *configs).results()
        assert {end[:2] for of_rank in ends for end in of_rank} == {("BUDGET_SPENT", 0)}
        runs |= {(size, config.precision): config.run_dir for config in configs}
    return runs


@pytest.mark.parametrize("size", SIZES)
def test_losses_of_fifty_steps_are_those_of_one_process(equal_runs, size, note):
    alone, shared = (step_records(equal_runs[n, "fp32"]) for n in (1, size))
    assert len(shared) == STEPS
    for field in ("train_loss", "grad_norm"):
        expected = [record[field] for record in alone]
        assert [record[field] for record in shared] == pytest.approx(expected, rel=1e-5)
        if field == "train_loss":
            note(size, "all-reduce", "fp32", [record[field] for record in shared], expected)
    for field in ("lr", "tokens_seen"):
        assert [record[field] for record in shared] == [record[field] for record in alone]


def test_bfloat16_losses_are_close_to_those_of_one_process(equal_runs, note):
    alone, shared = ([r["train_loss"] for r in step_records(equal_runs[n, "bf16"])] for n in (1, 2))
    assert shared == pytest.approx(alone, rel=1e-3)
    note(2, "all-reduce", "bf16", shared, alone)


@pytest.mark.parametrize(("size", "precision"), [(2, "fp32"), (3, "fp32"), (4, "fp32"), (2, "bf16")])
def test_the_held_out_loss_of_the_same_weights_is_the_same_bits(equal_runs, size, precision, note):
    """Three groups of windows: more than two ranks have, as many as three, fewer than four."""
    alone, shared = (records(equal_runs[n, precision])[0] for n in (1, size))
    assert (alone["step"], shared["val_loss"]) == (0, alone["val_loss"])
    note(size, "held-out loss", precision, [shared["val_loss"]], [alone["val_loss"]])


@pytest.mark.parametrize("size", SIZES)
def test_one_rank_writes_what_one_process_does(equal_runs, size):
    alone, shared = equal_runs[1, "fp32"], equal_runs[size, "fp32"]
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (alone, shared)]
    assert names[0] == names[1]
    result = json.loads((shared / "result.json").read_text())
    assert (result["status"], result["steps_completed"]) == ("BUDGET_SPENT", STEPS)
    assert all(gate["passed"] is not False for gate in result["gates"])
    assert (result["ranks"], len(result["peak_memory_by_rank"])) == (size, size)
    assert result["peak_memory_bytes"] == max(result["peak_memory_by_rank"]) > 0
    seconds = [record["slowest_rank_seconds"] for record in step_records(shared)]
    tokens = WINDOWS * SEQ
    speeds = [record["tokens_per_sec"] for record in step_records(shared)]
    assert speeds == pytest.approx([tokens / s for s in seconds], rel=1e-3)


def test_what_is_printed_is_printed_once_and_says_what_a_step_takes(options):
    config = options("printed", num_steps=2, batch_size=2)
    lead, *others = ranks.Ranks(3, ranks.train, config).results()
    assert "ranks: 3, each with 2 x 2 windows per step; together 12 windows" in lead[0][2]
    assert lead[0][2].count("BUDGET_SPENT") == 1
    assert [end[2] for (end,) in others] == ["", ""]


REFUSED = {
    "not-divisible": ({"batch_size": 4}, "--global-batch"),
    "one-device": ({"batch_size": 3, "device": "cuda:0"}, "--device"),
    "no-model": ({"batch_size": 3, "init": Path("missing.apr")}, "missing.apr"),
    "contradicting": ({"batch_size": 3, "grad_accum": 5}, "--grad-accum"),
}


def test_a_run_that_cannot_start_is_refused_on_all_ranks(options):
    """And nothing of it is left, nor does any rank wait for another."""
    configs = [options(name, **changes) for name, (changes, _) in REFUSED.items()]
    ends = ranks.Ranks(2, ranks.train, *configs).results()
    for (name, (_, word)), *of_ranks in zip(REFUSED.items(), *ends, strict=True):
        assert {status for status, _, _ in of_ranks} == {"refused"}, name
        assert len({code for _, code, _ in of_ranks}) == 1
        assert all(word in text and "\n" not in text for _, _, text in of_ranks)
    assert not any(config.run_dir.exists() for config in configs)

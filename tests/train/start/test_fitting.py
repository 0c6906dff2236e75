"""Micro-batches that fit into memory, in processes whose memory is limited."""

import json
import re

import pytest
from tests.train import children
from tests.train.conftest import step_records

WINDOWS = 144


@pytest.fixture
def wide(options, tmp_path, make_shards):
    """Return the options of a run whose activations are large: 2 MB for each window of a step."""
    arch = tmp_path / "arch.yaml"
    arch.write_text(
        "architecture: qwen2\nhidden_size: 64\nnum_layers: 2\nnum_heads: 2\nnum_kv_heads: 2\n"
        "intermediate_size: 2048\nmax_position_embeddings: 64\nrope_theta: 10000.0\nrms_norm_eps: 1e-6\n"
        "tie_word_embeddings: true\nvocab_size: 512\n"
    )
    shards = make_shards(tokens=4 * WINDOWS * 32)

    def make(**changes):
        common = {"mode": "from-scratch", "init": None, "arch": str(arch), "dataset": shards}
        steps = {"num_steps": 1, "eval_every": 1, "batch_size": WINDOWS, "patience": 9}
        return options(**common | steps | changes)

    return make


def test_auto_takes_the_largest_micro_batch_that_fits_and_keeps_the_step(wide, train, tmp_path):
    config = wide(batch_size=WINDOWS // 16, grad_accum=16, micro_batch="auto")
    child = children.start(children.run_with_memory, config, 740 << 20)
    child.join()
    assert child.exitcode == 0
    result = json.loads((config.run_dir / "result.json").read_text())
    size = result["micro_batch"]
    assert 1 < size < WINDOWS
    assert size * result["grad_accum"] == WINDOWS
    assert f"micro-batch: {size} of the {WINDOWS} windows" in (config.run_dir / "run.log").read_text()
    assert size > WINDOWS // 16
    # The step as a whole does not fit. The shards are not scanned again, whose threads took 200 MB of address
    # space.
    whole = wide(run_dir=tmp_path / "whole")
    child = children.start(children.run_with_memory, whole, 540 << 20)
    child.join()
    assert child.exitcode == 5
    # The same windows and tokens: sums of the same numbers in another order.
    train(whole)
    split, whole = (step_records(tmp_path / run) for run in ("run", "whole"))
    for ours, theirs in zip(split, whole, strict=True):
        assert ours["tokens_seen"] == theirs["tokens_seen"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    # A resumed run has memory for more, and keeps the split.
    resumed = train(wide(resume=True, extend=True, num_steps=2, batch_size=size, grad_accum=WINDOWS // size))
    assert (resumed.steps_completed, resumed.micro_batch) == (2, size)


def test_memory_that_runs_out_in_a_run_names_flags_that_then_fit(wide):
    """The limit comes with the first checkpoint, as if another program took memory in a run."""
    import apr

    config = wide(num_steps=3)
    available = 640 << 20
    child = children.start(children.run_out_of_memory, config, available)
    child.join()
    failed = json.loads((config.run_dir / "result.json").read_text())
    assert (failed["status"], failed["exit_code"], failed["micro_batch"]) == ("FAILED", 1, WINDOWS)
    steps, last = failed["steps_completed"], failed["last_checkpoint"]
    # The limit comes when the checkpoint is reported, before the second step or after it.
    assert (steps, last) in {(1, "ckpt/epoch-000.apr"), (2, "ckpt/epoch-001.apr")}
    assert "\n" not in failed["detail"]
    assert f"after {steps} step" in failed["detail"]
    assert "--resume" in failed["detail"]
    assert apr.verify(config.run_dir / last).ok
    advised = int(re.search(r"--micro-batch (\d+)", failed["detail"])[1])
    # As advised, with as much memory as the run could have.
    again = wide(num_steps=3, resume=True, micro_batch=advised)
    child = children.start(children.run_with_memory, again, available)
    child.join()
    result = json.loads((config.run_dir / "result.json").read_text())
    assert (result["status"], result["resumed_from"]) == ("BUDGET_SPENT", last)
    assert result["micro_batch"] == advised


@pytest.mark.parametrize(
    ("micro_batch", "problem"),
    [(5, "--micro-batch 5 does not divide the 16 windows"), (32, "use --micro-batch 16")],
)
def test_a_micro_batch_that_does_not_divide_a_step_is_refused(refused, micro_batch, problem):
    line, code = refused("--micro-batch", str(micro_batch), batch_size=8, grad_accum=2)
    assert code == 2
    assert problem in line


def test_a_micro_batch_that_is_no_number_is_refused(refused):
    line, code = refused("--micro-batch", "most")
    assert (code, "a whole number or auto" in line) == (2, True)


def test_a_micro_batch_splits_the_step_that_the_options_describe(options, train, tmp_path):
    import yaml

    train(options(run_dir=tmp_path / "one", batch_size=2, grad_accum=2, num_steps=3))
    train(options(run_dir=tmp_path / "two", micro_batch=2, num_steps=3))
    files = [yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in ("one", "two")]
    assert (files[1]["batch_size"], files[1]["grad_accum"]) == (2, 2)
    assert {**files[0], "run_dir": None} == {**files[1], "run_dir": None}
    epochs = [(tmp_path / run / "ckpt" / "epoch-000.apr").read_bytes() for run in ("one", "two")]
    assert epochs[0] == epochs[1]

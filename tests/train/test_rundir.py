"""A run directory, and what a resumed run may change."""

from dataclasses import replace

import pytest
from tests.train.conftest import BASE

from apr.errors import PreflightError, RefusedError, UsageError
from apr.options import options_of
from apr.train.config import PretrainConfig, Resume
from apr.train.rundir import resumed_config, write_config

OPTIONS = options_of(PretrainConfig)
# Another valid value of each option; a path that is different.
OTHER = {
    "shuffle": False,
    "mode": "from-init",
    "lr": 1e-3,
    "warmup_steps": 3,
    "target_val_loss": 1.0,
    "save_every": 7,
    "save_dtype": "bf16",
    "device": "cpu",
    "precision": "bf16",
    "min_lr_ratio": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
}


def other(name):
    option = OPTIONS[name]
    if name in OTHER:
        return OTHER[name]
    if option.type is bool:
        return not getattr(PretrainConfig, name)
    if option.type is int:
        return getattr(PretrainConfig, name) + 1
    if option.type is float:
        return getattr(PretrainConfig, name) * 2
    return "elsewhere"


def with_rule(*rules):
    # --arch and --init exclude each other.
    return [name for name, option in OPTIONS.items() if option.marker(Resume) in rules and name != "arch"]


@pytest.fixture
def saved(tmp_path):
    """The options of a run whose directory holds config.yaml alone."""
    config = PretrainConfig(dataset=tmp_path / "shards", run_dir=tmp_path / "run", init=BASE)
    config.run_dir.mkdir()
    write_config(config.run_dir, config.resolved("fp32", compiled=False))
    return replace(config, resume=True)


def test_the_same_options_resume(saved):
    resumed = resumed_config(saved)
    assert (resumed.lr, resumed.warmup_steps, resumed.precision) == (5e-5, 100, "fp32")


@pytest.mark.parametrize("name", [name for name in with_rule(Resume.FREE) if name != "run_dir"])
def test_what_decides_nothing_may_change(saved, name):
    assert getattr(resumed_config(replace(saved, **{name: other(name)})), name) is not None


@pytest.mark.parametrize("name", with_rule(Resume.FIXED, Resume.MOVABLE, Resume.SPLIT, Resume.EXTENDABLE))
def test_what_decides_the_numbers_is_kept(saved, name):
    with pytest.raises(RefusedError, match=OPTIONS[name].flag):
        resumed_config(replace(saved, **{name: other(name)}))


@pytest.mark.parametrize("name", with_rule(Resume.MOVABLE))
def test_paths_may_change_once_there_is_a_checkpoint(saved, name):
    (saved.run_dir / "ckpt").mkdir()
    (saved.run_dir / "ckpt" / "epoch-001.apr").touch()
    resumed_config(replace(saved, **{name: "elsewhere"}))


def test_a_path_written_in_another_way_is_the_same(saved, tmp_path):
    resumed_config(replace(saved, dataset=tmp_path / "run" / ".." / "shards"))


def test_windows_per_step_may_be_split_into_other_micro_batches(saved):
    resumed_config(replace(saved, batch_size=4, grad_accum=4))
    with pytest.raises(RefusedError, match="--batch-size 16 --grad-accum 1") as error:
        resumed_config(replace(saved, batch_size=4, grad_accum=3))
    assert "\n" not in str(error.value)


def test_extend_raises_the_number_of_steps_and_never_lowers_it(saved):
    assert resumed_config(replace(saved, num_steps=1001, extend=True)).num_steps == 1001
    with pytest.raises(RefusedError, match="--num-steps"):
        resumed_config(replace(saved, num_steps=999, extend=True))
    with pytest.raises(RefusedError, match="--extend"):
        resumed_config(replace(saved, num_steps=1001))


def test_every_conflict_is_reported_at_once(saved):
    with pytest.raises(PreflightError) as error:
        resumed_config(replace(saved, seed=1, lr=1.0))
    assert len(error.value.problems) == 2


def test_a_config_that_lacks_required_options_is_wrong_usage(saved):
    (saved.run_dir / "config.yaml").write_text("lr: 1.0\n")
    with pytest.raises(UsageError, match=r"config\.yaml: dataset, run_dir"):
        resumed_config(saved)

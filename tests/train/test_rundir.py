"""A run directory, and what a resumed run may change."""

from dataclasses import replace

import pytest
import yaml
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
    "val_tokens": 640,
    "max_minutes": 5.0,
    "grad_accum": 2,
    "global_batch": 48,
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


@pytest.mark.parametrize(
    ("steps", "flag", "other"), [(1001, "extend", "shorten"), (999, "shorten", "extend")]
)
def test_the_number_of_steps_changes_only_on_request(saved, steps, flag, other):
    assert resumed_config(replace(saved, num_steps=steps, **{flag: True})).num_steps == steps
    for request in ({}, {other: True}):
        with pytest.raises(RefusedError, match=f"--num-steps 1000, not {steps}.*--{flag}"):
            resumed_config(replace(saved, num_steps=steps, **request))


def as_an_older_version_wrote(run_dir, **changes):
    """Rewrite config.yaml with the keys and the default target of the version before --eval-every."""
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    values["steps_per_epoch"], values["min_epochs"] = values.pop("eval_every"), values.pop("min_evaluations")
    del values["max_minutes"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values | {"target_val_loss": 2.2} | changes))


def test_a_default_target_of_an_older_version_was_not_asked_for(saved):
    as_an_older_version_wrote(saved.run_dir)
    assert resumed_config(saved).target_val_loss is None
    assert resumed_config(replace(saved, target_val_loss=2.2)).target_val_loss == 2.2
    assert resumed_config(saved).eval_every == 100


def test_a_target_that_was_asked_for_is_kept(saved):
    as_an_older_version_wrote(saved.run_dir, target_val_loss=1.5)
    assert resumed_config(saved).target_val_loss == 1.5
    new = replace(saved, target_val_loss=2.2)
    write_config(saved.run_dir, new.resolved("fp32", compiled=False))
    assert resumed_config(saved).target_val_loss == 2.2


@pytest.fixture
def directory(tmp_path):
    """Make a directory that is not a run, by kind."""

    def make(kind):
        path = tmp_path / "here"
        if kind != "missing":
            path.mkdir()
        if kind == "shards":
            (path / "shard-00000.bin").write_text("")
        elif kind == "model":
            (path / "config.json").write_text("{}")
            (path / "model.safetensors").write_text("")
        elif kind == "refused":
            (path / "result.json").write_text('{"status": "REFUSED"}')
        elif kind == "other":
            (path / "notes").write_text("")
        elif kind == "file":
            path.rmdir()
            path.write_text("")
        return path

    return make


KINDS = {
    "missing": (FileNotFoundError, "no such run directory"),
    "file": (NotADirectoryError, "file"),
    "empty": (RefusedError, "empty"),
    "shards": (RefusedError, "token shards"),
    "model": (RefusedError, "transformers model"),
    "refused": (RefusedError, "refused"),
    "other": (RefusedError, "other files"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_run_is_named_and_left_alone(directory, kind, capsys):
    """Without a run there are no options, and the first missing flag was blamed."""
    from apr.cli import main
    from apr.errors import exit_code, message
    from apr.train import plan, pretrain

    path = directory(kind)
    error, words = KINDS[kind]
    config = PretrainConfig(dataset="shards", run_dir=path, init=BASE, resume=True)
    for call in (pretrain, plan):
        with pytest.raises(error) as caught:
            call(config)
        assert str(path) in message(caught.value)
        assert words in message(caught.value)
    for more in ([], ["--plan"], ["--dataset", "shards", "--init", str(BASE)]):
        assert main(["pretrain", "--run-dir", str(path), "--resume", *more]) == exit_code(caught.value)
        assert capsys.readouterr().err == f"apr pretrain: error: {message(caught.value)}\n"
    assert path.exists() == (kind != "missing")


def test_a_run_nearby_is_suggested(saved, tmp_path, capsys):
    from apr.cli import main

    (saved.run_dir / "ckpt").mkdir()
    for typed in ("rum", "run/ckpt", "."):
        assert main(["pretrain", "--run-dir", str(tmp_path / typed), "--resume"]) in {3, 5}
        assert f"did you mean {tmp_path / 'run'}?" in capsys.readouterr().err
    assert main(["pretrain", "--resume"]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_a_run_without_its_options_is_refused_by_the_name_of_the_file(saved, capsys):
    from apr.cli import main

    (saved.run_dir / "train.jsonl").write_text("")
    (saved.run_dir / "config.yaml").unlink()
    assert main(["pretrain", "--run-dir", str(saved.run_dir), "--resume"]) == 3
    assert "config.yaml" in capsys.readouterr().err


def test_every_conflict_is_reported_at_once(saved):
    with pytest.raises(PreflightError) as error:
        resumed_config(replace(saved, seed=1, lr=1.0))
    assert len(error.value.problems) == 2


def test_a_config_that_lacks_required_options_is_wrong_usage(saved):
    (saved.run_dir / "config.yaml").write_text("lr: 1.0\n")
    with pytest.raises(UsageError, match=r"config\.yaml: dataset, run_dir"):
        resumed_config(saved)

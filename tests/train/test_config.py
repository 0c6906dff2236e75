"""The options of a run: each is declared in one place, and values that cannot work are refused."""

from dataclasses import fields, replace
from inspect import get_annotations

import pytest
from annotated_types import Ge, Gt, Le, Lt
from tests.train.conftest import BASE

from apr.errors import OptionsError, UsageError
from apr.options import Unset, options_of
from apr.train.config import MODES, PretrainConfig, ResolvedConfig, Resume

OPTIONS = options_of(PretrainConfig)
# The value next to each bound, on its far side.
BEYOND = {
    Ge: lambda marker, step: marker.ge - step,
    Gt: lambda marker, _: marker.gt,
    Le: lambda marker, step: marker.le + step,
    Lt: lambda marker, _: marker.lt,
}
BOUNDS = [
    (option, marker) for option in OPTIONS.values() for marker in option.markers if type(marker) in BEYOND
]


def config(**changes):
    return PretrainConfig(**{"dataset": "shards", "run_dir": "run", "init": BASE, **changes})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_fact_about_an_option_is_on_its_field(name):
    """A new option is one field: it has help, a group and a resume rule."""
    from apr.cli._flags import help_text

    sections = [base for base in PretrainConfig.__mro__ if name in get_annotations(base)]
    assert len(sections) == 1, "declared in one section, which is its group in --help"
    assert sections[0].__doc__.endswith(".")
    text = help_text(PretrainConfig, name)
    assert text[0].isupper()
    assert text.endswith(".")
    assert OPTIONS[name].marker(Resume) is not None
    if OPTIONS[name].optional:
        assert OPTIONS[name].marker(Unset), "what help shows as the default"


def test_help_of_arch_names_every_preset():
    from apr.cli._flags import help_text
    from apr.model.init import PRESETS

    assert all(preset in help_text(PretrainConfig, "arch") for preset in PRESETS)


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].type in {int, float}])
def test_every_number_has_a_lower_bound(name):
    assert OPTIONS[name].marker(Ge) or OPTIONS[name].marker(Gt)


@pytest.mark.parametrize(
    ("option", "marker"), BOUNDS, ids=[f"{option.name}-{marker}" for option, marker in BOUNDS]
)
def test_values_beyond_a_bound_are_refused(option, marker):
    value = BEYOND[type(marker)](marker, 1 if option.type is int else 0.5)
    with pytest.raises(UsageError, match=f"^{option.flag} must be"):
        config(**{option.name: value})


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].type is not str])
def test_values_of_another_type_are_refused(name):
    with pytest.raises(UsageError, match=f"^{OPTIONS[name].flag} must be"):
        config(**{name: object()})


@pytest.mark.parametrize("name", [name for name in OPTIONS if not OPTIONS[name].optional])
def test_options_without_a_meaning_of_none_refuse_it(name):
    with pytest.raises(UsageError, match=OPTIONS[name].flag):
        config(**{name: None})


def test_every_problem_is_reported_at_once():
    with pytest.raises(OptionsError) as error:
        config(lr=-1.0, num_steps="4", mode="fine-tune")
    assert [str(problem).split()[0] for problem in error.value.problems] == ["--mode", "--num-steps", "--lr"]
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"mode": "from-scratch", "arch": "qwen2-4m"}, ["--init"]),
        ({"mode": "from-scratch"}, ["--init", "--arch"]),
        ({"init": None}, ["--init"]),
        ({"init": None, "mode": "from-scratch"}, ["--arch"]),
        ({"arch": "qwen2-4m"}, ["--arch"]),
        ({"extend": True}, ["--extend"]),
        ({"shorten": True}, ["--shorten"]),
        ({"resume": True, "force": True}, ["--resume"]),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(changes, flags):
    with pytest.raises(OptionsError) as error:
        config(**changes)
    assert len(error.value.problems) == len(flags)
    for problem, flag in zip(error.value.problems, flags, strict=True):
        assert flag in str(problem)


def test_numbers_of_numpy_and_devices_of_torch_are_accepted():
    import numpy as np
    import torch

    given = config(device=torch.device("cpu"), num_steps=np.int64(12), lr=np.float32(0.5))
    assert given == config(device="cpu", num_steps=12, lr=0.5)
    assert type(given.num_steps) is int
    assert type(given.lr) is float


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_sets_what_is_not_given(mode):
    start = {"init": None, "arch": "qwen2-4m"} if mode == "from-scratch" else {}
    resolved = config(mode=mode, num_steps=20_000, **start).resolved("fp32", compiled=False)
    defaults = MODES[mode]
    assert (resolved.lr, resolved.warmup_steps) == (defaults.lr, defaults.warmup_steps)
    assert (resolved.target_val_loss, resolved.precision) == (None, "fp32")
    given = {"lr": 1e-3, "warmup_steps": 7, "target_val_loss": 1.0}
    resolved = config(mode=mode, **given, **start).resolved("bf16", compiled=False)
    assert {name: getattr(resolved, name) for name in given} == given


@pytest.mark.parametrize(
    ("steps", "batch", "given", "expected"),
    [
        (1, 1, None, 16_384),
        (64, 1, None, 16_384),
        (65, 1, None, 16_640),
        (100, 8, None, 204_800),
        (1024, 1, None, 262_144),
        (1025, 1, None, 262_144),
        (1000, 64, None, 262_144),
        (1, 1, 1, 1),
        (1000, 64, 1_000_000, 1_000_000),
    ],
)
def test_an_evaluation_takes_a_quarter_of_the_training_tokens_within_limits(steps, batch, given, expected):
    run = config(num_steps=steps, batch_size=batch, seq_length=1024, val_tokens=given)
    assert run.resolved("fp32", compiled=False).val_tokens == run.evaluated_tokens == expected


def test_old_names_of_options_are_accepted_by_the_constructor():
    """The flags and YAML keys have the same aliases."""
    assert config(steps_per_epoch=7, min_epochs=2, steps=9) == config(
        eval_every=7, min_evaluations=2, num_steps=9
    )
    with pytest.raises(TypeError, match="step_per_epoch"):
        config(step_per_epoch=7)
    for both in ({"steps_per_epoch": 7, "eval_every": 8}, {"eval_every": 8, "steps_per_epoch": 7}):
        with pytest.raises(TypeError, match="'eval_every' twice"):
            config(**both)


@pytest.mark.parametrize(
    ("steps", "every", "done", "expected"),
    [
        (12, 6, 0, 2),
        (12, 5, 0, 3),
        (12, 5, 5, 2),
        (12, 5, 9, 2),
        (12, 5, 10, 1),
        (12, 5, 12, 0),
        (3, 5, 0, 1),
    ],
)
def test_evaluations_that_are_to_come_are_counted(steps, every, done, expected):
    run = config(num_steps=steps, eval_every=every)
    assert run.evaluations_after(done) == expected
    assert sum(run.evaluates_after(step) for step in range(done + 1, steps + 1)) == expected


def test_a_default_warmup_is_at_most_a_tenth_of_the_steps():
    assert config(num_steps=55).resolved("fp32", compiled=False).warmup_steps == 5
    assert config(num_steps=1).resolved("fp32", compiled=False).warmup_steps == 0


def test_a_warmup_that_leaves_no_step_is_refused():
    config(num_steps=10, warmup_steps=9).check_warmup()
    with pytest.raises(UsageError, match="--warmup-steps 10"):
        config(num_steps=10, warmup_steps=10).check_warmup()


def test_a_resolved_run_has_no_option_left_open():
    resolved = config().resolved("fp32", compiled=False)
    with pytest.raises(OptionsError, match="--lr"):
        replace(resolved, lr=None)
    assert [field.name for field in fields(ResolvedConfig)] == list(OPTIONS)


def test_what_is_saved_gives_the_same_options_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved = config(resume=True).to_yaml()
    assert saved["dataset"] == str(tmp_path / "shards")
    assert not {"resume", "extend", "force"} & saved.keys()
    assert PretrainConfig(**saved) == config(dataset=tmp_path / "shards", run_dir=tmp_path / "run")


def test_inputs_are_the_files_that_a_run_reads():
    scratch = config(init=None, mode="from-scratch", arch="sizes.yaml", contract="c.yaml")
    assert {flag: str(path) for flag, path in scratch.inputs().items()} == {
        "--dataset": "shards",
        "--contract": "c.yaml",
        "--arch": "sizes.yaml",
    }
    assert "--arch" not in config(init=None, mode="from-scratch", arch="qwen2-4m").inputs()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("learning_rate", "lr"), ("max_steps", "num_steps"), ("per_device_train_batch_size", "batch_size"),
     ("num_step", "num_steps"), ("eval_steps", "eval_every"), ("xyzzy", None)],
)  # fmt: skip
def test_another_tools_name_of_an_option_names_the_option(given, meant):
    with pytest.raises(TypeError, match=given) as error:
        PretrainConfig(dataset="d", run_dir="r", init="m.apr", **{given: 1})
    assert (f"did you mean '{meant}'?" in str(error.value)) == (meant is not None)

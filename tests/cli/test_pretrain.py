"""Options of `apr pretrain` from a YAML file, under those that are typed."""

import pytest
import yaml

from apr.cli import main
from apr.cli._flags import parse
from apr.cli.pretrain import Command, default


@pytest.fixture
def parsed(tmp_path):
    """Parse flags on top of a YAML file of these options."""

    def run(*flags, **options):
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(options))
        arguments = ["--config", str(path), *flags]
        return parse(Command, "apr pretrain", arguments, default(arguments))

    return run


REQUIRED = {"dataset": "shards", "run-dir": "run"}


def test_flags_override_the_file(parsed):
    command = parsed("--steps", "5", "--lr=2e-3", num_steps=9, lr=1.0, seed=3, **REQUIRED)
    assert (command.optimization.num_steps, command.optimization.lr, command.data.seed) == (5, 2e-3, 3)
    assert str(command.data.dataset) == "shards"


def test_values_that_start_with_a_dash_are_values(parsed):
    assert str(parsed(dataset="-shards", run_dir="--run").data.dataset) == "-shards"


def test_switches_of_the_file_can_be_repeated_and_undone(parsed):
    on = {"tensorboard": True, "shuffle": False, **REQUIRED}
    command = parsed("--tensorboard", "--no-shuffle", **on)
    assert command.output.tensorboard
    assert not command.data.shuffle
    command = parsed("--no-tensorboard", "--shuffle", **on)
    assert not command.output.tensorboard
    assert command.data.shuffle


def test_none_unsets_an_option_of_the_file(parsed):
    assert parsed("--contract", "None", contract="c.yaml", **REQUIRED).evaluation.contract is None


def test_required_options_may_come_from_either(parsed, capsys):
    command = parsed("--run_dir", "run", dataset="shards")
    assert (str(command.data.dataset), str(command.output.run_dir)) == ("shards", "run")
    with pytest.raises(SystemExit):
        parsed(dataset="shards")
    assert "--run-dir" in capsys.readouterr().err


def test_resume_reads_the_options_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"dataset": "d", "run_dir": str(tmp_path), "seed": 7})
    )
    for arguments in (["--resume", "--run-dir", str(tmp_path)], [f"--output_dir={tmp_path}", "--resume"]):
        assert default(arguments).data.seed == 7
    assert default(["--run-dir", str(tmp_path)]) is None


def test_unknown_keys_are_named_with_a_suggestion(tmp_path, capsys):
    path = tmp_path / "o.yaml"
    path.write_text("learning_rate: 1\nweigth_decay: 0.1\n")
    assert main(["pretrain", "--config", str(path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "'learning_rate'" in first
    assert "did you mean 'weight_decay'?" in second


def test_a_missing_file_is_not_found(capsys):
    assert main(["pretrain", "--config", "/nowhere.yaml"]) == 3
    assert "/nowhere.yaml" in capsys.readouterr().err


def test_wrong_values_are_one_line_each(capsys):
    flags = ["--dataset", "d", "--run-dir", "r", "--init", "i", "--lr", "-1", "--keep", "0"]
    assert main(["pretrain", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[3] for line in lines] == ["--lr", "--keep"]

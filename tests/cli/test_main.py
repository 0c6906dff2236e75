"""The `apr` command: finding the command, help, and exit codes."""

import subprocess
import sys

import pytest

from apr.cli import main
from apr.cli.main import COMMANDS

# A misspelled flag of each command, and the right one.
MISSPELLED = {
    "inspect": ("--quik", "--quick"),
    "tensors": ("--stat", "--stats"),
    "seal": ("--jsn", "--json"),
    "verify": ("--jsn", "--json"),
    "diff": ("--atoll", "--atol"),
    "stamp": ("--outt", "--out"),
    "convert": ("--dtpye", "--dtype"),
    "init": ("--vocab_sze", "--vocab-size"),
    "tokenize encode": ("--corpsu", "--corpus"),
    "repair-manifest": ("--dry-rum", "--dry-run"),
    "pretrain": ("--datset", "--dataset"),
    "evaluate": ("--vol-tokens", "--val-tokens"),
    "generate": ("--temprature", "--temperature"),
    "report": ("--comapre", "--compare"),
    "contracts lint": ("--strict-test-bindings", "--strict-test-binding"),
}


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from apr.cli import main; main(['--help']); "
        "sys.exit(bool({'torch', 'numpy', 'tyro', 'rich', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


def test_no_command_prints_help_and_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "pretrain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("evalute", "evaluate"),
        ("verfy", "verify"),
        ("repair_manifest", "repair-manifest"),
        ("--hlep", "--help"),
        ("xyzzy", None),
    ],
)
def test_an_unknown_command_is_wrong_usage(capsys, typed, suggested):
    assert main([typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(typed) in line
    assert ("did you mean" in line) == (suggested is not None)
    if suggested is not None:
        assert line.endswith(f"did you mean apr {suggested}?")


@pytest.mark.parametrize(
    ("typed", "suggested"), [(["tokenize", "encod"], "encode"), (["contracts", "chek"], "check")]
)
def test_an_unknown_subcommand_is_wrong_usage(capsys, typed, suggested):
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"did you mean {suggested}?")


def test_every_command_has_a_misspelled_flag_here():
    assert {command.split()[0] for command in MISSPELLED} == COMMANDS.keys()


@pytest.mark.parametrize("command", MISSPELLED)
def test_an_unknown_flag_is_wrong_usage(capsys, command):
    typed, suggested = MISSPELLED[command]
    assert main([*command.split(), typed, "x"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == f"apr {command}: error: unknown option {typed}; did you mean {suggested}?\n"


def test_a_flag_that_resembles_none_points_to_help(capsys):
    assert main(["pretrain", "--xyzzy"]) == 2
    assert "apr pretrain --help" in capsys.readouterr().err


def test_missing_required_flags_are_named(capsys):
    assert main(["pretrain"]) == 2
    err = capsys.readouterr().err
    assert "--dataset" in err
    assert "--run-dir" in err

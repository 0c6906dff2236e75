"""Help of every command, as it is printed."""

import re

import pytest

from apr.cli import main
from apr.cli.main import COMMANDS

SUBCOMMANDS = {"tokenize": ["train", "encode", "decode"], "contracts": ["lint", "check", "list"]}
EVERY = [
    [command, *more]
    for command in COMMANDS
    for more in [[], *([name] for name in SUBCOMMANDS.get(command, []))]
]


@pytest.fixture
def help_of(capsys, monkeypatch):
    """Print a command's help in so many columns."""

    def show(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*words, "--help"]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_shows_no_none_and_no_empty_default(help_of, words):
    text = help_of(*words)
    assert "None" not in text.replace("the value None", "")
    assert "(default: )" not in text
    assert "(default: False)" not in text


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_fits_the_terminal(help_of, words):
    # A box is drawn with spaces where standard output is not known to take UTF-8.
    boxes = [line for line in help_of(*words).splitlines() if line.startswith(("│", "╭", "╰", " "))]
    assert boxes
    assert max(map(len, boxes)) <= 80


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["pretrain"], "--dataset PATH, --shards-dir PATH"),
        (["pretrain"], "--run-dir PATH, --output-dir PATH"),
        (["pretrain"], "--num-steps INT, --steps INT"),
        (["tokenize", "encode"], "--workers INT, --num-workers INT"),
        (["init"], "-o PATH, --out PATH, --output PATH"),
        (["evaluate"], "--dataset PATH, --shards-dir PATH"),
    ],
)
def test_the_main_name_of_a_flag_comes_before_long_aliases(help_of, words, names):
    assert names in help_of(*words)


def test_the_groups_of_pretrain_are_in_order(help_of):
    titles = re.findall(r"^[╭─ ]+(\w+) options[╮─ ]+$", help_of("pretrain"), re.MULTILINE)
    assert titles == ["data", "model", "optimization", "evaluation", "checkpoints", "hardware", "output"]


def test_a_switch_that_is_off_has_no_negative_form(help_of):
    text = help_of("pretrain", columns=120)
    assert "--shuffle, --no-shuffle" in text
    assert "--compile, --no-compile" in text
    assert "--no-tensorboard" not in text

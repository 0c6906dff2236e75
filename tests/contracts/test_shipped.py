"""Contracts that ship with the package are found by their names from any directory."""

import json
import tomllib
from pathlib import Path

import pytest

import apr.contracts
from apr.cli import main
from apr.contracts import load_contract

ROOT = Path(__file__).parents[2]
CONTRACTS = sorted((ROOT / "contracts").glob("*.yaml"))
NAME = "apr-pretrain-init-finetune-v1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A current directory without contracts."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.parametrize(
    "name", ["init-finetune", "init-finetune-v1", "pretrain-init-finetune", NAME, f"{NAME}.yaml", "finetune"]
)
def test_a_contract_is_found_by_its_name(name):
    assert load_contract(name).name == NAME


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_every_contract_of_the_project_ships_and_exists_once(path):
    assert load_contract(path.stem).path.resolve() == path


def test_the_wheel_contains_every_contract():
    """maturin does not follow the link to the folder by itself, but where the pattern leads through it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["maturin"]
    (include,) = settings["include"]
    inside = include["path"].removeprefix(f"{settings['python-source']}/")
    assert {"wheel", "sdist"} == set(include["format"])
    package = Path(apr.contracts.__file__).parents[2]
    assert sorted(path.name for path in package.glob(inside)) == [path.name for path in CONTRACTS]


def test_check_takes_a_name_and_says_each_promise_in_words_first(make_run, capsys):
    assert main(["contracts", "check", "init-finetune", "--run-dir", str(make_run())]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert NAME in heading
    falsifiers = load_contract(NAME).falsifiers
    assert len(rows) == len(falsifiers)
    for row, falsifier in zip(rows, falsifiers, strict=True):
        words, before, after = row.partition(falsifier.rule)
        assert before
        assert not any(character.isdigit() for character in words)
        assert falsifier.id in after


def test_a_file_of_that_name_comes_first(elsewhere, make_run, capsys):
    text = next(path for path in CONTRACTS if path.stem == NAME).read_text()
    (elsewhere / "init-finetune").write_text(text.replace("the process exits 0", "my own promise"))
    main(["contracts", "check", "init-finetune", "--run-dir", str(make_run())])
    assert "my own promise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("init-finetun", 3, NAME),
        ("xyzzy", 3, "apr contracts list"),
        ("./init-finetune", 3, "No such file"),
        ("v1", 2, NAME),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(make_run, capsys, name, code, says):
    assert main(["contracts", "check", name, "--run-dir", str(make_run())]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name.removeprefix('./')}: " in line
    assert says in line


def test_what_ships_is_listed_and_never_written_to(make_run, capsys):
    assert main(["contracts", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["contracts"]
    assert [row["name"] for row in rows] == [path.stem for path in CONTRACTS]
    before = [path.read_bytes() for path in CONTRACTS]
    assert main(["contracts", "check", "init-finetune", "--run-dir", str(make_run()), "--record"]) == 2
    assert "--record" in capsys.readouterr().err
    assert [path.read_bytes() for path in CONTRACTS] == before


def test_list_shows_the_description_before_the_number(capsys):
    assert main(["contracts", "list"]) == 0
    for line, path in zip(capsys.readouterr().out.splitlines(), CONTRACTS, strict=True):
        contract = load_contract(path)
        assert contract.description in line.partition(f" {len(contract.falsifiers)} ")[0]

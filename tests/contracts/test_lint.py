"""`apr contracts lint`: everything that is wrong, at once, with its line."""

import json
from pathlib import Path

import pytest

from apr.cli import main

ROOT = Path(__file__).parents[2]
GOOD = """\
metadata:
  version: "1.0.0"
  created: "2026-11-23"
  description: "a promise"
  kind: schema
  status: DRAFT
  references: ["README.md"]
falsification_tests:
  - id: FALSIFY-ONE-001
    rule: it holds
    prediction: it is so
    test: "pytest tests/test_it.py -k holds"
    if_fails: mend it
    check: {name: exit_code, equals: 0}
"""


@pytest.fixture
def lint(tmp_path, capsys):
    """Write contracts (name → text) beside one test file, lint them, give (exit code, problems)."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("def test_it_holds():\n    assert True\n")

    def run(*flags: str, **texts: str) -> tuple[int, list[dict]]:
        directory = tmp_path / "contracts"
        directory.mkdir()
        for name, text in texts.items():
            (directory / f"{name}.yaml").write_text(text)
        code = main(["contracts", "lint", str(directory), "--json", *flags])
        return code, json.loads(capsys.readouterr().out)["problems"]

    return run


def test_the_contracts_of_this_project_are_sound(capsys):
    assert main(["contracts", "lint", str(ROOT / "contracts"), "--strict-test-binding"]) == 0, (
        capsys.readouterr()
    )


@pytest.mark.parametrize("flags", [[], ["--strict-test-binding"]])
def test_a_sound_contract_has_no_problem(lint, flags):
    assert lint(*flags, good=GOOD) == (0, [])


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("kind: schema", "kind: poem", 5, "'poem' is none of"),
        ("status: DRAFT", "status: DONE", 6, "'DONE' is none of"),
        ('references: ["README.md"]', "references: []", 7, "not empty"),
        ("prediction: it is so", 'prediction: ""', 11, "prediction"),
        ("test_it.py -k holds", "test_it.py -k other", 9, "no test that matches"),
        ("tests/test_it.py", "tests/test_gone.py", 9, "no such file"),
        ("pytest tests/test_it.py -k holds", "make it", 9, "neither"),
        ("name: exit_code, equals: 0", "name: eval, code: 1", 14, "a name out of"),
        ("equals: 0", "at_most: 0", 14, "takes equals, not at_most"),
        ("name: exit_code, equals: 0", "name: [a]", 14, "a name out of"),
        ("name: exit_code, equals: 0", "name: exit_code, 1: 2, null: 3", 14, "takes equals, not 1, None"),
        ("equals: 0", "equals: .nan", 14, "equals is a number"),
        ("equals: 0", "equals: 1" + 400 * "0", 14, "equals is a number"),
        ('"2026-11-23"', "2026-13-41", 1, "no YAML"),
        ("metadata:\n", "loop: &a {b: *a}\nmetadata:\n", 1, "an anchor within itself"),
        ("equals: 0", "equals: zero", 14, "equals is a number"),
        ("metadata:\n", "metadata:\n  depends_on: [nowhere]\n", 2, "no nowhere.yaml"),
    ],
)
def test_each_fault_is_named_with_its_line(lint, old, new, line, says):
    code, problems = lint(bad=GOOD.replace(old, new))
    assert code == 5
    assert [(p["line"], says in p["problem"]) for p in problems] == [(line, True)]


def test_all_faults_are_reported_at_once(lint):
    bad = GOOD.replace("kind: schema", "kind: poem").replace("rule: it holds", "rule: 3")
    assert [p["line"] for p in lint(bad=bad)[1]] == [5, 10]


def test_ids_are_unique_across_the_directory(lint):
    code, problems = lint(one=GOOD, two=GOOD)
    assert code == 5
    assert "is already an id in" in problems[0]["problem"]


def test_a_cycle_of_dependencies_is_refused(lint):
    one = GOOD.replace("metadata:\n", "metadata:\n  depends_on: [two]\n")
    two = GOOD.replace("metadata:\n", "metadata:\n  depends_on: [one]\n").replace("ONE-001", "TWO-001")
    assert [p["problem"] for p in lint(one=one, two=two)[1]] == [
        "depends_on: one depends on itself",
        "depends_on: two depends on itself",
    ]


@pytest.mark.parametrize("flags", [[], ["--strict-test-binding"]])
@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("tests/test_it.py tests/test_more.py -k 'holds or more'", None),
        ("tests/test_it.py tests/test_gone.py -k holds", "no such file: tests/test_gone.py"),
        ("tests/test_it.py tests/test_more.py -k holds", "tests/test_more.py has no test that matches"),
        ("tests/test_it.py tests/test_more.py -k 'holds or more or else'", "no test matches else"),
        ("tests/test_it.py tests/test_empty.py", "tests/test_empty.py has no test"),
        ("-k holds", "names no file"),
    ],
)
def test_every_file_of_a_binding_is_looked_at(lint, tmp_path, flags, test, says):
    (tmp_path / "tests" / "test_more.py").write_text("def test_there_is_more():\n    assert True\n")
    (tmp_path / "tests" / "test_empty.py").write_text("")
    code, problems = lint(*flags, bound=GOOD.replace("tests/test_it.py -k holds", test))
    assert code == (5 if says else 0)
    assert [says in p["problem"] for p in problems] == ([True] if says else [])


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\tx"])
def test_what_is_no_mapping_is_one_problem(lint, text):
    code, problems = lint(bad=text)
    assert code == 5
    assert len(problems) == 1


@pytest.mark.parametrize("content", [b"def test_holds(:\n", b"\0", b"\xff", b"(" * 5000])
def test_a_test_file_that_is_no_python_is_a_problem(lint, tmp_path, content):
    (tmp_path / "tests" / "test_it.py").write_bytes(content)
    code, problems = lint(good=GOOD)
    assert code == 5
    assert ["tests/test_it.py is no Python" in p["problem"] for p in problems] == [True]

"""`apr contracts lint` reports all problems at once, with their lines."""

import json
from pathlib import Path

import pytest

from apr.cli import main

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
    if_fails: fix it
    check: {name: exit_code, equals: 0}
"""


@pytest.fixture
def lint(tmp_path, capsys):
    """Write contracts (name → text) beside one test file and lint them: (exit code, problems)."""
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


@pytest.mark.parametrize("flags", [[], ["--strict-test-binding"]])
def test_a_valid_contract_has_no_problem(lint, flags):
    assert lint(*flags, good=GOOD) == (0, [])


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("kind: schema", "kind: poem", 5, "'poem'"),
        ("status: DRAFT", "status: DONE", 6, "'DONE'"),
        ('references: ["README.md"]', "references: []", 7, "references"),
        ("prediction: it is so", 'prediction: ""', 11, "prediction"),
        ("test_it.py -k holds", "test_it.py -k other", 9, "'other'"),
        ("tests/test_it.py", "tests/test_gone.py", 9, "tests/test_gone.py"),
        ("pytest tests/test_it.py -k holds", "make it", 9, "'make it'"),
        ("name: exit_code, equals: 0", "name: eval, code: 1", 14, "check"),
        ("equals: 0", "at_most: 0", 14, "at_most"),
        ("name: exit_code, equals: 0", "name: [a]", 14, "check"),
        ("name: exit_code, equals: 0", "name: exit_code, 1: 2, null: 3", 14, "1, None"),
        ("equals: 0", "equals: .nan", 14, "equals"),
        ("equals: 0", "equals: 1" + 400 * "0", 14, "equals"),
        ('"2026-11-23"', "2026-13-41", 1, "YAML"),
        ("metadata:\n", "loop: &a {b: *a}\nmetadata:\n", 1, "anchor"),
        ("equals: 0", "equals: zero", 14, "equals"),
        ("metadata:\n", "metadata:\n  depends_on: [nowhere]\n", 2, "nowhere.yaml"),
    ],
)
def test_each_problem_is_reported_with_its_line(lint, old, new, line, says):
    code, problems = lint(bad=GOOD.replace(old, new))
    assert code == 5
    assert [(p["line"], says in p["problem"]) for p in problems] == [(line, True)]


def test_all_problems_are_reported_at_once(lint):
    bad = GOOD.replace("kind: schema", "kind: poem").replace("rule: it holds", "rule: 3")
    assert [p["line"] for p in lint(bad=bad)[1]] == [5, 10]


def test_ids_are_unique_across_the_directory(lint):
    code, problems = lint(one=GOOD, two=GOOD)
    assert code == 5
    assert "FALSIFY-ONE-001" in problems[0]["problem"]


def test_a_cycle_of_dependencies_is_refused(lint):
    one = GOOD.replace("metadata:\n", "metadata:\n  depends_on: [two]\n")
    two = GOOD.replace("metadata:\n", "metadata:\n  depends_on: [one]\n").replace("ONE-001", "TWO-001")
    problems = [(Path(p["file"]).stem, p["problem"]) for p in lint(one=one, two=two)[1]]
    assert [file for file, _ in problems] == ["one", "two"]
    assert all("depends_on" in problem for _, problem in problems)


@pytest.mark.parametrize("flags", [[], ["--strict-test-binding"]])
@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("tests/test_it.py tests/test_more.py -k 'holds or more'", None),
        ("tests/test_it.py tests/test_gone.py -k holds", "tests/test_gone.py"),
        ("tests/test_it.py tests/test_more.py -k holds", "tests/test_more.py"),
        ("tests/test_it.py tests/test_more.py -k 'holds or more or else'", "else"),
        ("tests/test_it.py tests/test_empty.py", "tests/test_empty.py"),
        ("-k holds", "file"),
    ],
)
def test_every_file_of_a_test_command_is_checked(lint, tmp_path, flags, test, says):
    (tmp_path / "tests" / "test_more.py").write_text("def test_there_is_more():\n    assert True\n")
    (tmp_path / "tests" / "test_empty.py").write_text("")
    code, problems = lint(*flags, bound=GOOD.replace("tests/test_it.py -k holds", test))
    assert code == (5 if says else 0)
    assert [says in p["problem"] for p in problems] == ([True] if says else [])


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\tx"])
def test_a_file_without_a_mapping_is_one_problem(lint, text):
    code, problems = lint(bad=text)
    assert code == 5
    assert len(problems) == 1


@pytest.mark.parametrize("content", [b"def test_holds(:\n", b"\0", b"\xff", b"(" * 5000])
def test_a_test_file_with_invalid_python_is_a_problem(lint, tmp_path, content):
    (tmp_path / "tests" / "test_it.py").write_bytes(content)
    code, problems = lint(good=GOOD)
    assert code == 5
    assert ["tests/test_it.py" in p["problem"] for p in problems] == [True]

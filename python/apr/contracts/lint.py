"""Lint a directory of contracts: structure, unique ids, dependencies, and that every named test exists."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from typing import TYPE_CHECKING

from apr.contracts.schema import Contract, Problem, read_contract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def lint(directory: Path, *, collect: bool = False) -> tuple[list[Contract], list[Problem]]:
    """Read all contracts of a directory and find all problems in them.

    Args:
        directory: the directory of the *.yaml files. Test paths are relative to its parent.
        collect: let pytest collect the tests. It takes seconds, but also sees generated tests. Otherwise the
            test files are read for the names.

    Returns:
        The contracts that can be read, and the problems of all files, sorted.

    Raises:
        FileNotFoundError: the directory does not exist or has no *.yaml file.
    """
    paths = sorted(directory.glob("*.yaml"))
    if not paths:
        raise FileNotFoundError(2, "the directory has no contracts (*.yaml)", str(directory))
    contracts: list[Contract] = []
    problems: list[Problem] = []
    for path in paths:
        contract, file_problems = read_contract(path)
        problems += file_problems
        if contract is not None:
            contracts.append(contract)
    problems += _duplicate_ids(contracts)
    problems += _dependencies(contracts, {path.stem for path in paths})
    root = directory.resolve().parent
    collected = _collect(contracts, root) if collect else None
    for contract in contracts:
        for falsifier in contract.falsifiers:
            problem = _binding(falsifier.test, root, collected)
            if problem:
                line = _line_of(contract.path, falsifier.id)
                problems.append(Problem(contract.path, line, f"{falsifier.id}: {problem}"))
    return contracts, sorted(problems)


def _duplicate_ids(contracts: Iterable[Contract]) -> Iterator[Problem]:
    seen: dict[str, Path] = {}
    for contract in contracts:
        for falsifier in contract.falsifiers:
            if falsifier.id in seen:
                line = _line_of(contract.path, falsifier.id)
                yield Problem(contract.path, line, f"{falsifier.id} is already used in {seen[falsifier.id]}")
            seen[falsifier.id] = contract.path


def _dependencies(contracts: list[Contract], names: set[str]) -> Iterator[Problem]:
    dependencies = {contract.name: contract.depends_on for contract in contracts}
    for contract in contracts:
        for name in contract.depends_on:
            if name not in names:
                line = _line_of(contract.path, name)
                yield Problem(contract.path, line, f"depends_on: {name}.yaml does not exist")
        # The contracts that can be reached from this one; if it is among them, there is a cycle.
        reached: set[str] = set()
        pending = list(contract.depends_on)
        while pending:
            name = pending.pop()
            if name not in reached:
                reached.add(name)
                pending += dependencies.get(name, ())
        if contract.name in reached:
            yield Problem(contract.path, 1, f"depends_on: {contract.name} depends on itself")


def _binding(test: str, root: Path, collected: set[str] | None) -> str | None:
    """Return what is wrong with the command that names a test, or None."""
    try:
        words = shlex.split(test)
    except ValueError as error:
        return f"test: {error}"
    if words[:1] == ["pytest"] and len(words) > 1:
        return _find_pytest(words[1:], root, collected)
    if words[:2] == ["cargo", "test"]:
        return _find_cargo(words[-1], root)
    return f"test: {test!r} is neither `pytest …` nor `cargo test …`"


def _find_pytest(words: list[str], root: Path, collected: set[str] | None) -> str | None:
    """Check that every file exists and has a selected test, and that every term of -k selects a test.

    Otherwise a renamed test would drop out of its contract unnoticed, as long as another term still matches.
    """
    # Contracts select tests with -k: pv, the ecosystem's checker, takes `a.py::name` for a Rust test.
    expression = words[words.index("-k") + 1] if "-k" in words[:-1] else ""
    terms = [term for term in re.split(r"\s+(?:and|or)\s+|\s+", expression) if term and term != "not"]
    unmatched = set(terms)
    files = list(takewhile(lambda word: not word.startswith("-"), words))
    if not files:
        return "test: the command names no file"
    for file in files:
        if not (root / file).is_file():
            return f"test: {file} does not exist"
        try:
            if collected is None:
                names = _tests_in(root / file)
            else:
                names = [node.partition("::")[2] for node in collected if node.startswith(f"{file}::")]
        except (SyntaxError, ValueError, RecursionError) as error:
            return f"test: {file} is not valid Python: {error}"
        matched = {term for term in terms if any(term in name for name in names)}
        if not names or (terms and not matched):
            return f"test: {file} has no test that matches {expression!r}"
        unmatched -= matched
    if unmatched:
        return f"test: {', '.join(files)}: no test matches {', '.join(sorted(unmatched))}"
    return None


def _tests_in(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if name.startswith("test")]


def _collect(contracts: Iterable[Contract], root: Path) -> set[str]:
    """Return the node ids that pytest collects from all files that the contracts name, relative to `root`."""
    named = {word for c in contracts for f in c.falsifiers for word in f.test.split() if word.endswith(".py")}
    files = sorted(name for name in named if (root / name).is_file())
    # The project's own options may contain -q; a second one makes pytest print only counts.
    # importlib, because modules of several folders may have the same name.
    options = ["--collect-only", "-q", "-o", "addopts=", "--import-mode=importlib", "--rootdir", str(root)]
    command = [sys.executable, "-m", "pytest", *options, *files]
    # A module that cannot be imported makes pytest fail. Its tests are then not collected, which `_binding`
    # reports for each promise.
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return {line for line in run.stdout.splitlines() if "::" in line}


def _find_cargo(name: str, root: Path) -> str | None:
    # A search in the sources: cargo lists tests only after compiling them.
    pattern = re.compile(rf"\bfn {re.escape(name.rpartition('::')[2])}\b")
    sources = (root / "rust").rglob("*.rs")
    if any(pattern.search(path.read_text(encoding="utf-8", errors="replace")) for path in sources):
        return None
    return f"test: no Rust test has the name {name}"


def _line_of(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 1)

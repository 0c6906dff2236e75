"""A contract file: its shape, and everything that is wrong with it, with line numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.contracts.checks import CHECKS
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    import yaml

KINDS = (
    "kernel registry model-family model-family-variant tokenizer training-loop pretraining-corpus "
    "training-precondition-gate corpus-assembly pattern schema kaizen beat-benchmark"
).split()
STATUSES = ("DRAFT", "ACTIVE_RUNTIME")
_METADATA_TEXTS = ("version", "created", "description", "kind", "status")
_FALSIFIER_TEXTS = ("id", "rule", "prediction", "test", "if_fails")


@dataclass(frozen=True)
class CheckCall:
    """One of the fixed checks, with its operands."""

    name: str
    operands: dict[str, float]


@dataclass(frozen=True)
class Falsifier:
    """One promise and the test that can prove it false."""

    id: str
    rule: str
    prediction: str
    test: str
    if_fails: str
    check: CheckCall | None
    blocking: bool


@dataclass(frozen=True)
class Contract:
    """A contract file that has the right shape."""

    path: Path
    description: str
    status: str
    depends_on: tuple[str, ...]
    conditions: dict[str, object]
    """What the promises were written for, such as {"steps": 500, "device": "cuda"}; may be empty."""
    falsifiers: tuple[Falsifier, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending: what `depends_on` refers to."""
        return self.path.stem


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong in a contract file."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass
class _Reader:
    """Values of a YAML document with the line of each, and the problems met on the way."""

    path: Path
    lines: dict[tuple[object, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def note(self, where: tuple[object, ...], text: str) -> None:
        while where and where not in self.lines:
            where = where[:-1]
        self.problems.append(Problem(self.path, self.lines.get(where, 1), text))

    def texts(self, mapping: dict[str, Any], keys: tuple[str, ...], where: tuple[object, ...]) -> None:
        for key in keys:
            value = mapping.get(key)
            if not isinstance(value, str) or not value.strip():
                self.note(
                    (*where, key), f"{'.'.join(map(str, (*where, key)))}: a text that is not empty is needed"
                )


def load_contract(path: str | PathLike[str]) -> Contract:
    """Read a contract.

    Raises:
        FormatError: it is no contract; the message has the first problem and how many there are.
    """
    contract, problems = read_contract(Path(path))
    if contract is None:
        more = f" (and {len(problems) - 1} more: apr contracts lint)" if len(problems) > 1 else ""
        raise FormatError(f"{problems[0]}{more}", path=path)
    return contract


def read_contract(path: Path) -> tuple[Contract | None, list[Problem]]:
    """Read a contract and list all that is wrong with it; no contract if anything is."""
    import yaml

    reader = _Reader(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        reader.lines.update({} if node is None else _lines(node))
    except RecursionError:
        return None, [Problem(path, 1, "nested too deeply, or an anchor within itself")]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        mark = getattr(error, "problem_mark", None)
        return None, [Problem(path, mark.line + 1 if mark else 1, f"no YAML: {error}".split("\n")[0])]
    if node is None or not isinstance(document, dict):
        return None, [Problem(path, 1, "a mapping is needed at the top")]
    metadata = _read_metadata(document, reader)
    falsifiers = _read_falsifiers(document, reader)
    conditions = document.get("conditions", {})
    if not isinstance(conditions, dict):
        reader.note(("conditions",), "conditions: a mapping is needed")
    if reader.problems:
        return None, sorted(reader.problems)
    contract = Contract(
        path=path,
        description=metadata["description"],
        status=metadata["status"],
        depends_on=tuple(metadata.get("depends_on") or ()),
        conditions=conditions,
        falsifiers=tuple(falsifiers),
    )
    return contract, []


def _read_metadata(document: dict[str, Any], reader: _Reader) -> dict[str, Any]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        reader.note(("metadata",), "metadata: a mapping is needed")
        return {}
    metadata = {
        k: str(v) if k in {"version", "created"} and v is not None else v for k, v in metadata.items()
    }
    where: tuple[object, ...] = ("metadata",)
    reader.texts(metadata, _METADATA_TEXTS, where)
    for key, allowed in (("kind", KINDS), ("status", STATUSES)):
        value = metadata.get(key)
        if isinstance(value, str) and value not in allowed:
            reader.note((*where, key), f"metadata.{key}: {value!r} is none of {', '.join(allowed)}")
    for key, needed in (("references", True), ("depends_on", False)):
        value = metadata.get(key) or []
        if (
            not isinstance(value, list)
            or not all(isinstance(v, str) for v in value)
            or (needed and not value)
        ):
            reader.note(
                (*where, key), f"metadata.{key}: a list of texts{' that is not empty' * needed} is needed"
            )
    return metadata


def _read_falsifiers(document: dict[str, Any], reader: _Reader) -> Iterator[Falsifier]:
    tests = document.get("falsification_tests")
    if not isinstance(tests, list) or not tests:
        reader.note(("falsification_tests",), "falsification_tests: a list that is not empty is needed")
        return iter(())
    return iter([f for n, test in enumerate(tests) if (f := _read_falsifier(n, test, reader)) is not None])


def _read_falsifier(number: int, test: object, reader: _Reader) -> Falsifier | None:
    where: tuple[object, ...] = ("falsification_tests", number)
    if not isinstance(test, dict):
        reader.note(where, f"falsification_tests[{number}]: a mapping is needed")
        return None
    before = len(reader.problems)
    reader.texts(test, _FALSIFIER_TEXTS, where)
    blocking = test.get("blocking", True)
    if not isinstance(blocking, bool):
        reader.note((*where, "blocking"), f"{test.get('id')}: blocking is true or false, not {blocking!r}")
    check = test.get("check")
    if check is not None:
        for problem in _check_problems(check):
            reader.note((*where, "check"), f"{test.get('id')}: {problem}")
    if len(reader.problems) > before:
        return None
    call = (
        None if check is None else CheckCall(check["name"], {k: v for k, v in check.items() if k != "name"})
    )
    return Falsifier(**{key: test[key] for key in _FALSIFIER_TEXTS}, check=call, blocking=blocking)


def _check_problems(check: object) -> Iterator[str]:
    name = check.get("name") if isinstance(check, dict) else None
    if not isinstance(check, dict) or not isinstance(name, str) or name not in CHECKS:
        yield f"check: a mapping with a name out of {', '.join(CHECKS)} is needed"
        return
    needed = CHECKS[name].operands
    given = set(check) - {"name"}
    if given != set(needed):
        takes, got = ", ".join(needed) or "no operands", ", ".join(sorted(map(str, given))) or "none"
        yield f"check {name} takes {takes}, not {got}"
    for key in given & set(needed):
        if not _is_number(check[key]):
            yield f"check {name}: {key} is a number, not {check[key]!r}"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # holds for no NaN


def _lines(node: yaml.Node, where: tuple[object, ...] = ()) -> dict[tuple[object, ...], int]:
    """The line (from 1) of every key and item, by its path."""
    import yaml

    found = {where: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found |= _lines(value, (*where, key.value)) | {(*where, key.value): key.start_mark.line + 1}
    elif isinstance(node, yaml.SequenceNode):
        for n, item in enumerate(node.value):
            found |= _lines(item, (*where, n))
    return found

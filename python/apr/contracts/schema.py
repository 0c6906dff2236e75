"""The structure of a contract file, and a reader that reports all problems with their lines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apr.contracts.checks import CHECKS
from apr.contracts.shipped import find_contract
from apr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    import yaml

# The values that pv accepts, the ecosystem's checker (aprender-contracts-cli 0.72). Keys that are not read
# here are allowed, because pv knows more of them and ignores ours.
KINDS = (
    "kernel registry model-family model-family-variant tokenizer training-loop pretraining-corpus "
    "training-precondition-gate corpus-assembly pattern schema kaizen beat-benchmark"
).split()
STATUSES = ("DRAFT", "ACTIVE_RUNTIME")
_METADATA_TEXTS = ("version", "created", "description", "kind", "status")
_FALSIFIER_TEXTS = ("id", "rule", "prediction", "test", "if_fails")


@dataclass(frozen=True)
class CheckCall:
    """A check of `checks.CHECKS` with its operands."""

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
    """A valid contract file."""

    path: Path
    description: str
    status: str
    depends_on: tuple[str, ...]
    conditions: dict[str, object]
    """The runs that the promises are about, such as {"steps": 500, "device": "cuda"}. May be empty."""
    falsifiers: tuple[Falsifier, ...]

    @property
    def name(self) -> str:
        """The file name without its suffix, which `depends_on` refers to."""
        return self.path.stem


@dataclass(frozen=True, order=True)
class Problem:
    """A problem in a contract file."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass
class _Reader:
    """Collects problems; knows the line of every value in the YAML document."""

    path: Path
    lines: dict[tuple[object, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def note(self, where: tuple[object, ...], text: str) -> None:
        # A missing key has no line. The closest enclosing entry has one.
        while where and where not in self.lines:
            where = where[:-1]
        self.problems.append(Problem(self.path, self.lines.get(where, 1), text))

    def texts(self, mapping: dict[str, Any], keys: tuple[str, ...], where: tuple[object, ...]) -> None:
        for key in keys:
            value = mapping.get(key)
            if not isinstance(value, str) or not value.strip():
                path = ".".join(map(str, (*where, key)))
                self.note((*where, key), f"{path} must be a non-empty string")


def load_contract(path: str | PathLike[str]) -> Contract:
    """Read a contract.

    Args:
        path: the path of a contract, or the name of one that ships with apr, such as `init-finetune`.

    Raises:
        FormatError: the file is not a valid contract; the message has the first problem.
        OSError: the file cannot be read.
    """
    file = find_contract(path)
    contract, problems = read_contract(file)
    if contract is None:
        more = f" (and {len(problems) - 1} more; apr contracts lint lists them)" if len(problems) > 1 else ""
        raise FormatError(f"{problems[0]}{more}", path=file)
    return contract


def read_contract(path: Path) -> tuple[Contract | None, list[Problem]]:
    """Read a contract. Return it and no problems, or None and all problems of the file."""
    import yaml

    from apr.yaml_numbers import parse_yaml

    reader = _Reader(path)
    try:
        # Read twice: parse_yaml gives the values, but only the nodes of compose have line numbers.
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        document = parse_yaml(path.read_text(encoding="utf-8"))
        reader.lines.update({} if node is None else _lines(node))
    except RecursionError:
        return None, [Problem(path, 1, "the YAML is nested too deeply, or an anchor contains itself")]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: invalid UTF-8 or an impossible date
        mark = getattr(error, "problem_mark", None)
        return None, [Problem(path, mark.line + 1 if mark else 1, f"invalid YAML: {error}".split("\n")[0])]
    if node is None or not isinstance(document, dict):
        return None, [Problem(path, 1, "the file must contain a mapping")]
    metadata = _read_metadata(document, reader)
    falsifiers = _read_falsifiers(document, reader)
    conditions = document.get("conditions", {})
    if not isinstance(conditions, dict):
        reader.note(("conditions",), "conditions must be a mapping")
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
        reader.note(("metadata",), "metadata must be a mapping")
        return {}
    metadata = {
        # Without quotes, YAML reads a version as a number and a day as a date.
        k: str(v) if k in {"version", "created"} and v is not None else v
        for k, v in metadata.items()
    }
    where: tuple[object, ...] = ("metadata",)
    reader.texts(metadata, _METADATA_TEXTS, where)
    for key, allowed in (("kind", KINDS), ("status", STATUSES)):
        value = metadata.get(key)
        if isinstance(value, str) and value not in allowed:
            reader.note((*where, key), f"metadata.{key} is {value!r}; it must be one of {', '.join(allowed)}")
    for key, needed in (("references", True), ("depends_on", False)):
        value = metadata.get(key) or []
        if (
            not isinstance(value, list)
            or not all(isinstance(v, str) for v in value)
            or (needed and not value)
        ):
            kind = "a non-empty list" if needed else "a list"
            reader.note((*where, key), f"metadata.{key} must be {kind} of strings")
    return metadata


def _read_falsifiers(document: dict[str, Any], reader: _Reader) -> list[Falsifier]:
    tests = document.get("falsification_tests")
    if not isinstance(tests, list) or not tests:
        reader.note(("falsification_tests",), "falsification_tests must be a non-empty list")
        return []
    falsifiers = [_read_falsifier(n, test, reader) for n, test in enumerate(tests)]
    return [falsifier for falsifier in falsifiers if falsifier is not None]


def _read_falsifier(number: int, test: object, reader: _Reader) -> Falsifier | None:
    where: tuple[object, ...] = ("falsification_tests", number)
    if not isinstance(test, dict):
        reader.note(where, f"falsification_tests[{number}] must be a mapping")
        return None
    before = len(reader.problems)
    reader.texts(test, _FALSIFIER_TEXTS, where)
    blocking = test.get("blocking", True)
    if not isinstance(blocking, bool):
        reader.note(
            (*where, "blocking"), f"{test.get('id')}: blocking is {blocking!r}; it must be true or false"
        )
    check = test.get("check")
    if check is not None:
        for problem in _check_problems(check):
            reader.note((*where, "check"), f"{test.get('id')}: {problem}")
    if len(reader.problems) > before:
        return None
    call = None
    if check is not None:
        call = CheckCall(check["name"], {key: value for key, value in check.items() if key != "name"})
    return Falsifier(**{key: test[key] for key in _FALSIFIER_TEXTS}, check=call, blocking=blocking)


def _check_problems(check: object) -> Iterator[str]:
    name = check.get("name") if isinstance(check, dict) else None
    if not isinstance(check, dict) or not isinstance(name, str) or name not in CHECKS:
        yield f"check must be a mapping whose name is one of {', '.join(CHECKS)}"
        return
    needed = CHECKS[name].operands
    given = set(check) - {"name"}
    if given != set(needed):
        names = ", ".join(sorted(map(str, given))) or "none"
        yield f"check {name} has the operands {names}; it takes {', '.join(needed) or 'none'}"
    for key in given & set(needed):
        if not _is_number(check[key]):
            yield f"check {name}: {key} is {check[key]!r}, which is not a number"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # False for NaN


def _lines(node: yaml.Node, where: tuple[object, ...] = ()) -> dict[tuple[object, ...], int]:
    """Return the line, counted from 1, of every key and item by its path in the document."""
    import yaml

    lines = {where: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            # The key's line wins over the value's: a long value starts on a line of its own.
            lines |= _lines(value, (*where, key.value)) | {(*where, key.value): key.start_mark.line + 1}
    elif isinstance(node, yaml.SequenceNode):
        for n, item in enumerate(node.value):
            lines |= _lines(item, (*where, n))
    return lines

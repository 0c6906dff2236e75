"""Decide a contract from the files of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr.contracts.checks import CHECKS, MissingArtifactError, Outcome, Run
from apr.contracts.schema import Contract, load_contract
from apr.errors import UsageError

if TYPE_CHECKING:
    from os import PathLike

_WORDS = {True: "pass", False: "FAIL", None: "not applicable"}


@dataclass(frozen=True)
class Decision:
    """A falsifier and the outcome of its check."""

    id: str
    rule: str
    blocking: bool
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """The outcome of all checks of a contract for one run directory. `str()` gives a table."""

    contract: str
    conditions: dict[str, object]
    """The steps and the device of the run, and other conditions of the contract, with what the contract was
    written for if it differs."""
    unmet: tuple[str, ...]
    """The conditions of the contract that the run did not meet."""
    decisions: tuple[Decision, ...]

    @property
    def ok(self) -> bool:
        """Whether every blocking falsifier passed. One whose check does not apply did not."""
        return all(d.outcome.passed is True for d in self.decisions if d.blocking)

    def to_dict(self) -> dict[str, object]:
        """Return the verdict as values that `json.dumps` accepts."""
        return {
            "contract": self.contract,
            "ok": self.ok,
            "conditions": self.conditions,
            "unmet": list(self.unmet),
            "falsifiers": [
                {"id": d.id, "rule": d.rule, "blocking": d.blocking, **asdict(d.outcome)}
                for d in self.decisions
            ],
        }

    def __str__(self) -> str:
        rows = [
            (
                # The promise in words, before the numbers that decide it and the name that programs use.
                _WORDS[d.outcome.passed] + ("" if d.blocking else " (advisory)"),
                d.rule,
                str(d.outcome.measured),
                str(d.outcome.threshold),
                d.id,
                d.outcome.artifact + (f": {d.outcome.detail}" if d.outcome.detail else ""),
            )
            for d in self.decisions
        ]
        widths = [max(len(row[n]) for row in rows) for n in range(5)]
        lines = [
            "  ".join((*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[5])) for row in rows
        ]
        conditions = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return "\n".join(
            [f"{self.contract}: {'holds' if self.ok else 'DOES NOT HOLD'} ({conditions})", *lines]
        )


def check(contract: Contract | str | PathLike[str], run_dir: str | PathLike[str]) -> Verdict:
    """Run all checks of a contract on the files of a run.

    Args:
        contract: a contract, its path, or the name of one that ships with apr.
        run_dir: the directory of the run.

    Raises:
        FileNotFoundError: the contract or the run directory does not exist.
        FormatError: the file is not a valid contract.
        UsageError: no falsifier of the contract has a check.
    """
    contract = load_decidable(contract)
    directory = Path(run_dir)
    if not directory.is_dir():
        raise FileNotFoundError(2, "the run directory does not exist", str(directory))
    run = Run(directory)
    decisions = []
    for falsifier in contract.falsifiers:
        call = falsifier.check
        if call is None:  # only its test can decide it
            continue
        try:
            outcome = CHECKS[call.name].decide(run, **call.operands)
        except MissingArtifactError as missing:
            threshold = ", ".join(f"{key} {value:g}" for key, value in call.operands.items())
            # The message starts with the artifact, which the table shows anyway.
            detail = str(missing).partition(": ")[2]
            outcome = Outcome(False, "missing", threshold, missing.artifact, detail)
        decisions.append(Decision(falsifier.id, falsifier.rule, falsifier.blocking, outcome))
    return Verdict(contract.name, *_conditions(contract, run), tuple(decisions))


def load_decidable(contract: Contract | str | PathLike[str]) -> Contract:
    """Return a contract of which at least one falsifier has a check.

    Raises:
        FileNotFoundError: the contract does not exist.
        FormatError: the file is not a valid contract.
        UsageError: no falsifier of the contract has a check.
    """
    if not isinstance(contract, Contract):
        contract = load_contract(contract)
    if not any(f.check for f in contract.falsifiers):
        raise UsageError(
            f"{contract.path}: no falsifier has a check for a run directory; only tests can decide it",
            path=contract.path,
        )
    return contract


def _conditions(contract: Contract, run: Run) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return what the run was, and the conditions that it did not meet.

    Conditions are keys of result.json, but `steps`, which is `steps_completed` there.
    """
    conditions: dict[str, object] = {}
    unmet = []
    # Steps and device are always shown: a verdict means little without them.
    for key in dict.fromkeys(("steps", "device", *contract.conditions)):
        try:
            value = run.result.get("steps_completed" if key == "steps" else key, "unknown")
        except MissingArtifactError:
            value = "unknown"
        condition = contract.conditions.get(key)
        # The device "cuda" is met by cuda:0.
        if (
            condition is None
            or value == condition
            or (isinstance(condition, str) and str(value).startswith(condition))
        ):
            conditions[key] = value
        else:
            conditions[key] = f"{value} (written for {condition})"
            unmet.append(f"{key} {conditions[key]}")
    return conditions, tuple(unmet)

"""Decide a contract from the artifacts of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr.contracts.checks import CHECKS, MissingArtifactError, Outcome, Run
from apr.contracts.schema import Contract, load_contract
from apr.errors import UsageError

if TYPE_CHECKING:
    from os import PathLike

    from apr.contracts.schema import Falsifier

_WORDS = {True: "pass", False: "FAIL", None: "not applicable"}


@dataclass(frozen=True)
class Decision:
    """One falsifier and what the run says of it."""

    id: str
    rule: str
    blocking: bool
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """A contract decided from one run directory. `str()` of it is a table."""

    contract: str
    conditions: dict[str, object]
    """What the run was: steps completed and device, beside what the contract was written for."""
    unmet: tuple[str, ...]
    """The conditions of the contract that the run was not."""
    decisions: tuple[Decision, ...]

    @property
    def ok(self) -> bool:
        """Every blocking falsifier passed; one that does not apply is no pass."""
        return all(d.outcome.passed is True for d in self.decisions if d.blocking)

    def to_dict(self) -> dict[str, object]:
        """For JSON: contract, ok, conditions, unmet, falsifiers (verdict, measured, threshold, artifact)."""
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
                d.id,
                _WORDS[d.outcome.passed] + ("" if d.blocking else " (advisory)"),
                str(d.outcome.measured),
                str(d.outcome.threshold),
                d.outcome.artifact + (f": {d.outcome.detail}" if d.outcome.detail else ""),
            )
            for d in self.decisions
        ]
        widths = [max(len(row[n]) for row in rows) for n in range(4)]
        lines = [
            "  ".join((*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[4])) for row in rows
        ]
        conditions = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return "\n".join(
            [f"{self.contract}: {'holds' if self.ok else 'DOES NOT HOLD'} ({conditions})", *lines]
        )


def check(contract: Contract | str | PathLike[str], run_dir: str | PathLike[str]) -> Verdict:
    """Decide each falsifier of a contract that names a check.

    Raises:
        FileNotFoundError: there is no such contract or run directory.
        FormatError: the contract is none.
        UsageError: no falsifier of it can be decided from a run directory.
    """
    contract = load_decidable(contract)
    directory = Path(run_dir)
    if not directory.is_dir():
        raise FileNotFoundError(2, "no such run directory", str(directory))
    run = Run(directory)
    decisions = tuple(
        Decision(f.id, f.rule, f.blocking, _decide(f, run)) for f in contract.falsifiers if f.check
    )
    return Verdict(contract.name, *_conditions(contract, run), decisions)


def load_decidable(contract: Contract | str | PathLike[str]) -> Contract:
    """A contract that a run directory can decide at all.

    Raises:
        FileNotFoundError: there is no such contract.
        FormatError: the contract is none.
        UsageError: no falsifier of it can be decided from a run directory.
    """
    if not isinstance(contract, Contract):
        contract = load_contract(contract)
    if not any(f.check for f in contract.falsifiers):
        raise UsageError(f"{contract.path}: none of its falsifiers names a check: only its tests decide it")
    return contract


def _decide(falsifier: Falsifier, run: Run) -> Outcome:
    assert falsifier.check is not None
    call = falsifier.check
    threshold = ", ".join(f"{key} {value:g}" for key, value in call.operands.items())
    try:
        return CHECKS[call.name].decide(run, **call.operands)
    except MissingArtifactError as missing:
        return Outcome(False, "missing", threshold, missing.artifact, str(missing).partition(": ")[2])


def _conditions(contract: Contract, run: Run) -> tuple[dict[str, object], tuple[str, ...]]:
    """What the run was, and the conditions that it was not; any but `steps` is a key of result.json."""
    found: dict[str, object] = {}
    unmet = []
    for ours in dict.fromkeys(("steps", "device", *contract.conditions)):
        try:
            value = run.result.get("steps_completed" if ours == "steps" else ours, "unknown")
        except MissingArtifactError:
            value = "unknown"
        wanted = contract.conditions.get(ours)
        matches = (
            wanted is None or value == wanted or (isinstance(wanted, str) and str(value).startswith(wanted))
        )
        found[ours] = value if matches else f"{value} (written for {wanted})"
        if not matches:
            unmet.append(f"{ours} {found[ours]}")
    return found, tuple(unmet)

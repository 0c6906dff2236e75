"""`apr contracts`: lint contracts, check them against a run, list them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.contracts.lint import lint
from apr.contracts.record import record
from apr.contracts.schema import Problem, load_contract
from apr.contracts.shipped import SHIPPED
from apr.contracts.verdict import check
from apr.errors import EXIT_REFUSED, UsageError
from apr.options import Unset


@dataclass(frozen=True)
class Lint:
    """Check all contracts in a directory: structure, unique ids, dependencies, and that the tests exist.

    The exit code is 5 if there is a problem.

    Example: apr contracts lint contracts --strict-test-binding
    """

    directory: Annotated[Path, tyro.conf.Positional] = Path("contracts")
    """Directory of *.yaml contracts. Test paths are relative to its parent."""
    strict_test_binding: bool = False
    """Find tests by letting pytest collect them, instead of by reading the test files."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print all problems."""
        contracts, problems = lint(self.directory, collect=self.strict_test_binding)
        if self.json:
            rows = [{"file": str(p.path), "line": p.line, "problem": p.text} for p in problems]
            print(json.dumps({"contracts": [c.name for c in contracts], "problems": rows}))
        else:
            for problem in problems:
                print(problem)
            falsifiers = sum(len(c.falsifiers) for c in contracts)
            print(
                f"{len(contracts)} contracts, {falsifiers} falsifiers, {len(problems)} problems",
                file=sys.stderr,
            )
        return EXIT_REFUSED if problems else 0


@dataclass(frozen=True)
class Check:
    """Check whether a training run met a contract, a YAML file of requirements.

    The exit code is 5 if a falsifier that blocks a release fails.

    Example: apr contracts check init-finetune --run-dir runs/first
    """

    contract: Annotated[str, tyro.conf.Positional]
    """The contract file, or the name of one that ships with apr: init-finetune stands for
    apr-pretrain-init-finetune-v1."""
    run_dir: Path
    """The run directory."""
    record: bool = False
    """Write the evidence beside the contract. If the contract holds and the run met its conditions, its
    status becomes ACTIVE_RUNTIME."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print the verdict."""
        if self.record and not Path(self.contract).is_file():
            raise UsageError(
                f"{self.contract}: --record writes beside the contract; pass the path of a file of your own"
            )
        contract = load_contract(self.contract)
        verdict = check(contract, self.run_dir)
        print(json.dumps(verdict.to_dict()) if self.json else verdict)
        if self.record:
            # On standard error, because standard output may have to be JSON alone.
            print(f"evidence: {record(contract, verdict, self.run_dir)}", file=sys.stderr)
            if verdict.ok and verdict.unmet:
                unmet = ", ".join(verdict.unmet)
                print(
                    f"{self.contract}: the status stays {contract.status}, because the run had {unmet}",
                    file=sys.stderr,
                )
        return 0 if verdict.ok else EXIT_REFUSED


@dataclass(frozen=True)
class List:
    """List contracts with their description, their number of falsifiers (requirements) and their status.

    The exit code is 5 if a file is not a valid contract.

    Example: apr contracts list
    """

    directory: Annotated[Path | None, tyro.conf.Positional, Unset("the contracts that ship with apr")] = None
    """Directory of *.yaml contracts."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print a row for each contract."""
        if self.directory is None:
            # Their tests are not installed, so that `lint` would not find them.
            contracts = [load_contract(path) for path in sorted(SHIPPED.glob("*.yaml"))]
            problems: list[Problem] = []
        else:
            contracts, problems = lint(self.directory)
        if self.json:
            rows = [
                {
                    "name": c.name,
                    "status": c.status,
                    "falsifiers": len(c.falsifiers),
                    "description": c.description,
                }
                for c in contracts
            ]
            print(json.dumps({"contracts": rows}))
        else:
            width = max((len(c.description) for c in contracts), default=0)
            for c in contracts:
                print(f"{c.name:<40} {c.description:<{width}}  {len(c.falsifiers):>3}  {c.status}")
        for problem in problems:
            print(problem, file=sys.stderr)
        return EXIT_REFUSED if problems else 0


Command = (
    Annotated[Lint, tyro.conf.subcommand("lint")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[List, tyro.conf.subcommand("list")]
)

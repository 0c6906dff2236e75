"""`apr contracts`: lint promises, decide them from a run, list them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.contracts.lint import lint
from apr.contracts.record import record
from apr.contracts.schema import load_contract
from apr.contracts.verdict import check
from apr.errors import EXIT_REFUSED


@dataclass(frozen=True)
class Lint:
    """Check every contract of a directory: shape, ids, dependencies, and that each named test exists.

    Example: apr contracts lint contracts --strict-test-binding
    """

    directory: Annotated[Path, tyro.conf.Positional] = Path("contracts")
    """The directory of *.yaml contracts; tests are named relative to its parent."""
    strict_test_binding: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Have pytest collect every test."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print all problems; 5 if there are any."""
        contracts, problems = lint(self.directory, collect=self.strict_test_binding)
        if self.json:
            rows = [{"file": str(p.path), "line": p.line, "problem": p.text} for p in problems]
            print(json.dumps({"contracts": [c.name for c in contracts], "problems": rows}))
        else:
            print(*problems, sep="\n", end="\n" if problems else "")
            promises = sum(len(c.falsifiers) for c in contracts)
            print(
                f"{len(contracts)} contracts, {promises} falsifiers, {len(problems)} problems",
                file=sys.stderr,
            )
        return EXIT_REFUSED if problems else 0


@dataclass(frozen=True)
class Check:
    """Decide a contract's falsifiers from what a run left on disk; 5 if a blocking one fails.

    Example: apr contracts check contracts/apr-pretrain-init-finetune-v1.yaml --run-dir runs/first
    """

    contract: Annotated[Path, tyro.conf.Positional]
    """The contract."""
    run_dir: Path
    """The run directory."""
    record: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the evidence beside the contract; a contract that holds becomes ACTIVE_RUNTIME, if the run
    met its conditions."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print the verdict."""
        contract = load_contract(self.contract)
        verdict = check(contract, self.run_dir)
        print(json.dumps(verdict.to_dict()) if self.json else verdict)
        if self.record:
            print(f"evidence: {record(contract, verdict, self.run_dir)}", file=sys.stderr)
            if verdict.ok and verdict.unmet:
                unmet = ", ".join(verdict.unmet)
                print(f"{self.contract}: stays {contract.status}: the run had {unmet}", file=sys.stderr)
        return 0 if verdict.ok else EXIT_REFUSED


@dataclass(frozen=True)
class List:
    """List contracts with their status and how many falsifiers each has.

    Example: apr contracts list
    """

    directory: Annotated[Path, tyro.conf.Positional] = Path("contracts")
    """The directory of *.yaml contracts."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print a row for each contract; 5 if a file is none."""
        contracts, problems = lint(self.directory)
        rows = [
            {
                "name": c.name,
                "status": c.status,
                "falsifiers": len(c.falsifiers),
                "description": c.description,
            }
            for c in contracts
        ]
        if self.json:
            print(json.dumps({"contracts": rows}))
        else:
            for row in rows:
                print(f"{row['name']:<40} {row['status']:<15} {row['falsifiers']:>3}  {row['description']}")
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        return EXIT_REFUSED if problems else 0


Command = (
    Annotated[Lint, tyro.conf.subcommand("lint")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[List, tyro.conf.subcommand("list")]
)

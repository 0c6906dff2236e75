"""Keep the evidence of a contract that held, and mark the contract as live."""

from __future__ import annotations

import hashlib
import platform
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from apr.contracts.checks import MissingArtifactError, Run
from apr.files import write_atomically, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from apr.contracts.schema import Contract
    from apr.contracts.verdict import Verdict


def record(contract: Contract, verdict: Verdict, run_dir: Path) -> Path:
    """Write CONTRACT.evidence.json beside the contract.

    A contract that holds becomes ACTIVE_RUNTIME, if the run was what it was written for (`verdict.unmet`).
    The evidence has the verdict, the SHA-256 of every artifact it was read from, the host's name, the device,
    the versions of the run and the date. Both files are replaced atomically.
    """
    artifacts = sorted({d.outcome.artifact for d in verdict.decisions})
    try:
        result = Run(run_dir).result
    except MissingArtifactError:  # the verdict says so too
        result = {}
    evidence = {
        "verdict": verdict.to_dict(),
        "artifacts": {name: _sha256(run_dir / name) for name in artifacts if (run_dir / name).is_file()},
        "host": platform.node(),
        "device": result.get("device"),
        "versions": result.get("versions"),
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    target = contract.path.with_suffix(".evidence.json")
    write_json(target, evidence)
    if verdict.ok and not verdict.unmet:
        text = contract.path.read_text(encoding="utf-8")
        live = re.sub(r"(?m)^(  status: )DRAFT$", r"\1ACTIVE_RUNTIME", text)
        write_atomically(contract.path, live.encode())
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

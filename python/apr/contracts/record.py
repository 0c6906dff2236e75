"""Record the evidence for a verdict, and activate a contract that holds."""

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
    """Write CONTRACT.evidence.json beside the contract, and set its status.

    The evidence contains the verdict, the SHA-256 of every file that it was read from, the host name, the
    device and the versions of the run, and the date. If the contract holds and the run met all of its
    conditions, the status becomes ACTIVE_RUNTIME. Both files are written atomically.

    Returns:
        The path of the evidence.

    Raises:
        OSError: a file cannot be written.
    """
    artifacts = sorted({d.outcome.artifact for d in verdict.decisions})
    try:
        result = Run(run_dir).result
    except MissingArtifactError:  # the verdict reports it
        result = {}
    # The hashes tie the evidence to the files: a run directory that is changed later no longer fits it.
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
        # Edit the text: a YAML library would lose its comments and line breaks.
        text = contract.path.read_text(encoding="utf-8")
        live = re.sub(r"(?m)^(  status: )DRAFT$", r"\1ACTIVE_RUNTIME", text)
        write_atomically(contract.path, live.encode())
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

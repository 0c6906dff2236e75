"""Before the first step: all ranks run the same code with the same options on the same data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import apr
from apr.errors import PreflightError, RefusedError
from apr.options import options_of
from apr.train.config import PretrainConfig

if TYPE_CHECKING:
    from apr.train.prepared import Prepared


def check_same(prepared: Prepared) -> None:
    """Check that this rank is about to do what the leading one does. All ranks call it.

    Raises:
        RefusedError: it is not; says what differs. Each rank raises its own.
    """
    mine = _facts(prepared)
    lead = prepared.world.from_lead(mine if prepared.world.leads else None)
    problems = [
        RefusedError(f"{what} is {mine[what]}, but {lead[what]} on rank 0; start all ranks with the same")
        for what in mine
        if mine[what] != lead.get(what)
    ]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise PreflightError(problems)


def _facts(prepared: Prepared) -> dict[str, Any]:
    """Return what must be the same on all ranks, by the words of an error."""
    training, config = prepared.metadata.training, prepared.config
    options = {
        option.flag: getattr(config, name)
        for name, option in options_of(PretrainConfig).items()
        # Not where things are: the same files may have other paths on another host.
        if option.type is not Path and name not in {"arch", "contract"}
    }
    return {
        **options,
        "the hash of --dataset": training["data"]["corpus_sha256"],
        "the hash of the held-out shards": training["held_out"]["corpus_sha256"],
        "the held-out range": (training["held_out"]["start"], training["held_out"]["stop"]),
        "the CRC of --init": None if training["base_model"] is None else training["base_model"]["crc32"],
        "the architecture": prepared.model_config.to_metadata(),
        "the step to resume from": _step(prepared),
        "the version of torch": str(torch.__version__),
        "the code of apr": f"{apr.__version__} ({_code_hash()})",
    }


def _step(prepared: Prepared) -> int | None:
    point = prepared.resume_point
    return None if point is None or point.last is None else point.last.step


def _code_hash() -> str:
    """Return a hash of the package's files: its version alone does not tell two checkouts apart."""
    package = Path(apr.__file__).parent
    sha256 = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in {".py", ".so"}:
            sha256.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return sha256.hexdigest()[:12]

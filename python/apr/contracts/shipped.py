"""The contracts that ship with the package, found by their names from any directory."""

from __future__ import annotations

import re
from difflib import get_close_matches
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from apr.errors import UsageError

if TYPE_CHECKING:
    from os import PathLike

# In a checkout a link to the project's `contracts/`, so that each file exists once; in a wheel their copies.
SHIPPED = Path(__file__).with_name("files")


def find_contract(contract: str | PathLike[str]) -> Path:
    """Return the file of a contract.

    Args:
        contract: a path, or the name of a contract that ships with apr. `init-finetune` stands for
            `apr-pretrain-init-finetune-v1`. A file of that name comes first.

    Raises:
        FileNotFoundError: there is neither a file nor a contract of that name.
        UsageError: several contracts that ship with apr have names that end so.
    """
    path, name = Path(contract), fspath(contract)
    if path.is_file() or "/" in name:
        return path
    stems = {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}
    # A stem has a prefix and a version around what people call it.
    called = re.compile(rf"(?:.*-)?{re.escape(name.removesuffix('.yaml'))}(?:-v\d+)?")
    matches = [stem for stem in stems if called.fullmatch(stem)]
    if len(matches) == 1:
        return stems[matches[0]]
    if matches:
        raise UsageError(
            f"{name}: stands for several contracts ({', '.join(matches)}); pass one of these names"
        )
    close = get_close_matches(name, stems, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise FileNotFoundError(
        2, f"neither a file nor a contract that ships with apr; {hint}apr contracts list shows them", name
    )


def is_shipped(contract: str) -> bool:
    """Whether a text is the name of one contract that ships with apr, and not of a file."""
    try:
        return find_contract(contract).parent == SHIPPED
    except (FileNotFoundError, UsageError):
        return False

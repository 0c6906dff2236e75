"""`apr tensors`: a row for each tensor of a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import tyro

from apr.cli._console import printable, show, table
from apr.container.file import AprFile, TensorInfo, load

_STATS = ("min", "max", "mean", "std", "nan", "inf")


@dataclass(frozen=True)
class Command:
    """List the tensors of a file: name, dtype, shape, bytes, offset from the start of the file.

    Example: apr tensors model.apr --filter '*.layers.0.*' --stats
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr file."""
    filter: str = "*"
    """List only names that match this glob."""
    stats: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add min, max, mean, standard deviation of the finite values, and how many are NaN and infinite."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print the rows."""
        with load(self.file) as file:
            rows = []
            for name in file:
                if fnmatchcase(name, self.filter):
                    info = file.info(name)
                    rows.append((info, _stats(file, name) if self.stats else {}))
        if self.json:
            print(json.dumps({"tensors": [asdict(info) | stats for info, stats in rows]}))
            return 0
        numbers = ["bytes", "offset", *(_STATS if self.stats else ())]
        listing = table("name", "dtype", "shape", numbers=numbers)
        for info, stats in rows:
            listing.add_row(*_cells(info), *("-" if v is None else f"{v:.6g}" for v in stats.values()))
        show(listing)
        return 0


def _stats(file: AprFile, name: str) -> dict[str, float | int | None]:
    from apr.container.stats import stats  # NumPy, which a plain listing does without

    return stats(file.numpy(name))


def _cells(info: TensorInfo) -> list[str]:
    size = "tied" if info.tied else str(info.nbytes)
    return [printable(info.name), info.dtype, str(list(info.shape)), size, str(info.offset)]

"""`apr tensors`: a row for each tensor of a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from apr.cli._console import listing, printable
from apr.cli._keys import KeyFlags
from apr.container.header import TensorInfo
from apr.container.load import load
from apr.container.tensor_file import TensorFile

# What the index says, in which file it is (of several), statistics.
_Row: TypeAlias = tuple[TensorInfo, dict[str, str], dict[str, float | int | None]]
_STATS = ("min", "max", "mean", "std", "nan", "inf")


@dataclass(frozen=True)
class Command(KeyFlags):
    """List the tensors of a file: name, dtype, shape, bytes, offset from the start of the file.

    Of a model in several files, given by its index or directory, each row says in which file it is.

    Example: apr tensors model.apr --filter '*.layers.0.*' --stats
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr file, or an index or directory of several."""
    filter: str = "*"
    """List only names that match this glob."""
    stats: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add min, max, mean, standard deviation of the finite values, and how many are NaN and infinite."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Print the rows."""
        places, rows = self._rows()
        if self.json:
            print(json.dumps({"tensors": [asdict(info) | place | stats for info, place, stats in rows]}))
            return 0
        numbers = ["bytes", "offset", *(_STATS if self.stats else ())]
        cells = [
            [
                *map(printable, place.values()),
                *_cells(info),
                *("-" if value is None else f"{value:.6g}" for value in stats.values()),
            ]
            for info, place, stats in rows
        ]
        listing([*places, "name", "dtype", "shape"], numbers, cells)
        return 0

    def _rows(self) -> tuple[list[str], list[_Row]]:
        """The columns that say where a tensor is, and a row for each tensor."""
        rows: list[_Row] = []
        with load(self.file, **self.keys()) as file:
            for name in file:
                if fnmatchcase(name, self.filter):
                    place = {"file": Path(file.file_of(name).path).name} if file.is_sharded else {}
                    rows.append((file.info(name), place, _stats(file, name) if self.stats else {}))
        return ["file"] if file.is_sharded else [], rows


def _stats(file: TensorFile, name: str) -> dict[str, float | int | None]:
    from apr.container.stats import stats  # NumPy, which a plain listing does without

    return stats(file.numpy(name))


def _cells(info: TensorInfo) -> list[str]:
    size = "tied" if info.tied else str(info.nbytes)
    return [printable(info.name), info.dtype, str(list(info.shape)), size, str(info.offset)]

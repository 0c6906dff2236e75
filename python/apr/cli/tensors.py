"""`apr tensors`: list the tensors of a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import tyro

from apr.cli._console import listing, printable
from apr.cli._keys import KeyFlags
from apr.container.header import TensorInfo
from apr.formats.open import open_model

_STATS = ("min", "max", "mean", "std", "nan", "inf")


@dataclass(frozen=True)
class _Row:
    info: TensorInfo
    file: str | None
    """The file's name, for a model in several files."""
    stats: dict[str, float | int | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        place = {} if self.file is None else {"file": self.file}
        return asdict(self.info) | place | self.stats

    def cells(self) -> list[str]:
        info = self.info
        place = [] if self.file is None else [printable(self.file)]
        # A tied head has an entry of no bytes: its values are the embedding's.
        size = "tied" if info.tied else str(info.nbytes)
        stats = ["-" if value is None else f"{value:.6g}" for value in self.stats.values()]
        return [
            *place,
            printable(info.name),
            info.dtype,
            str(list(info.shape)),
            size,
            str(info.offset),
            *stats,
        ]


@dataclass(frozen=True)
class Command(KeyFlags):
    """List the tensors of a file: name, dtype, shape, bytes, and offset from the start of the file.

    For a model in several files, given by its index or directory, each row names the file.

    Example: apr tensors model.apr --filter '*.layers.0.*' --stats
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr, safetensors or GGUF file, or the index or directory of a model in several files."""
    filter: str = "*"
    """List only names that match this glob pattern."""
    stats: bool = False
    """Add the minimum, maximum, mean and standard deviation of the finite values, and the number of NaN and
    infinite values. Reads all values."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print a row for each tensor."""
        with open_model(self.file, **self.keys()) as file:
            rows = [
                _Row(file.info(name), Path(file.path_of(name)).name if file.is_sharded else None)
                for name in file
                if fnmatchcase(name, self.filter)
            ]
            if self.stats:
                from apr.container.stats import stats  # loads NumPy, which a plain listing does without

                rows = [_Row(row.info, row.file, stats(file.numpy(row.info.name))) for row in rows]
        if self.json:
            print(json.dumps({"tensors": [row.to_dict() for row in rows]}))
            return 0
        texts = ["file"] if file.is_sharded else []
        numbers = ["bytes", "offset", *(_STATS if self.stats else ())]
        listing([*texts, "name", "dtype", "shape"], numbers, [row.cells() for row in rows])
        return 0

"""`apr diff`: compare two model files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import tyro

from apr.cli._console import console, printable
from apr.errors import EXIT_REFUSED, UsageError
from apr.formats.diff import diff
from apr.options import Unset


@dataclass(frozen=True)
class Command:
    """Compare two models: metadata, tensor names, dtypes, shapes and values.

    Between two formats, each tensor is compared under its name in transformers, with GGUF's order of rows
    undone, and by its values whatever the dtype. For each layer the largest difference is shown, absolute and
    relative: the norm of a tensor's differences over the norm of its values in the first file.

    The exit code is 0 if the files are the same, and 5 if they differ.

    Example: apr diff model.gguf SmolLM2-135M/ --atol 1e-2
    """

    a: Annotated[Path, tyro.conf.Positional]
    """The first .apr, safetensors or GGUF file, or the index or directory of a model in several files."""
    b: Annotated[Path, tyro.conf.Positional]
    """The second one."""
    atol: Annotated[float | None, Unset("values must be equal bit for bit")] = None
    """Absolute difference up to which values count as equal. With it, NaN equals NaN."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Print the differences."""
        # False for NaN too, with which no two values would be equal.
        if self.atol is not None and not 0 <= self.atol < inf:
            raise UsageError(f"--atol is {self.atol}; it must be a finite number of at least 0")
        result = diff(self.a, self.b, atol=self.atol)
        if self.json:
            print(json.dumps(result.to_dict()))
        else:
            verdict, *lines = map(printable, result.lines())
            console().print(verdict, style="bold green" if result.same else "bold red")
            for line in lines:
                console().print(line)
        return 0 if result.same else EXIT_REFUSED

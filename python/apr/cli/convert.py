"""`apr convert`: a model of another format to .apr."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apr.container.convert import FloatDtype, convert


@dataclass(frozen=True)
class Command:
    """Write a GGUF model (Llama and Qwen2 families) as .apr: names, sizes and tokenizer go along.

    Quantised weights become float32, bit for bit what the gguf package gives; Llama's q and k rows get
    back the order that transformers has.

    Example: apr convert model.gguf model.apr
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The GGUF file."""
    target: Annotated[Path, tyro.conf.Positional]
    """The .apr file to write."""
    dtype: FloatDtype | None = None
    """Store every tensor in this dtype (default: as stored; f32 where the source is quantised)."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Convert, and say what was written."""
        from rich.console import Console
        from rich.progress import Progress

        started = time.monotonic()
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("reading", total=None)

            def on_tensor(name: str, done: int, total: int) -> None:
                bar.update(task, description=name, completed=done, total=total)

            made = convert(self.source, self.target, dtype=self.dtype, on_tensor=on_tensor)
        seconds = time.monotonic() - started
        if self.json:
            print(
                json.dumps(
                    {
                        "source": str(made.source),
                        "target": str(made.target),
                        "tensors": made.tensors,
                        "param_count": made.parameters,
                        "size_bytes": made.nbytes,
                        "seconds": round(seconds, 3),
                    }
                )
            )
        else:
            print(
                f"{made.target}: {made.tensors} tensors, {made.parameters / 1e6:.1f} M parameters, "
                f"{made.nbytes / 1e6:.1f} MB, from {made.source.name} in {seconds:.1f} s"
            )
        return 0

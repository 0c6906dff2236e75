"""`apr convert`: models from one format to another."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.filesize import decimal
from tyro.conf import FlagCreatePairsOff as Flag

from apr.cli._console import printable
from apr.convert import ConvertOptions, FloatDtype, convert
from apr.errors import UsageError

_UNITS = {
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


@dataclass(frozen=True)
class Command:
    """Convert a model: GGUF, safetensors or a transformers directory to .apr, and .apr back.

    TARGET decides what is written. A name that ends in .apr or .safetensors is that file;
    model.apr.index.json and model.safetensors.index.json are several in that directory. Any other name is a
    directory: a transformers one where SOURCE is .apr, several .apr files where it is not. Tokenizer and
    configuration go along; a file of any size takes some tens of megabytes of memory.

    Example: apr convert Qwen2.5-0.5B/ qwen.apr

    Example: apr convert model.gguf model.apr --keep-quantized

    Example: apr convert run/ckpt/epoch-004.apr my-model/

    Example: apr convert model.safetensors model.apr

    Example: apr convert large.apr several/model.apr.index.json --max-shard-size 2GB
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A GGUF or safetensors file, a transformers directory, an .apr; of several files, their index."""
    target: Annotated[Path, tyro.conf.Positional]
    """The file or directory to write."""
    dtype: FloatDtype | None = None
    """Store floating-point tensors in this dtype, quantized ones too (default: as stored; f32 for those that
    the target does not hold or that come from GGUF)."""
    keep_quantized: Annotated[bool, Flag] = False
    """To .apr: leave quantized tensors as they are, of GGUF's q4_k and q6_k, whatever the dtype."""
    max_shard_size: str | None = None
    """Write several files of at most this size: 2GB, 500MiB, or bytes."""
    no_tokenizer: Annotated[bool, Flag] = False
    """Leave the tokenizer out."""
    force: Annotated[bool, Flag] = False
    """Replace a directory that is there and holds a model: files that conversions write, no others."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Convert, and say what was written."""
        from rich.console import Console
        from rich.progress import Progress

        started = time.monotonic()
        options = ConvertOptions(
            dtype=self.dtype,
            keep_quantized=self.keep_quantized,
            max_shard_size=None if self.max_shard_size is None else _bytes(self.max_shard_size),
            tokenizer=not self.no_tokenizer,
            force=self.force,
        )
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("reading", total=None)

            def on_tensor(name: str, done: int, total: int) -> None:
                bar.update(task, description=printable(name), completed=done, total=total)

            made = convert(self.source, self.target, options, on_tensor=on_tensor)
        seconds = time.monotonic() - started
        if self.json:
            found = {
                "source": str(made.source),
                "target": str(made.target),
                "tensors": made.tensors,
                "param_count": made.parameters,
                "size_bytes": made.nbytes,
                "seconds": round(seconds, 3),
                "notes": list(made.notes),
            }
            print(json.dumps(found))
            return 0
        for note in made.notes:
            print(f"apr convert: note: {printable(note)}", file=sys.stderr)
        print(
            f"{printable(str(made.target))}: {made.tensors} tensors, "
            f"{made.parameters / 1e6:.1f} M parameters, {decimal(made.nbytes)}, "
            f"from {printable(made.source.name)} in {seconds:.1f} s"
        )
        return 0


def _bytes(text: str) -> int:
    """A size such as 2GB, 500MiB or 1000000."""
    number = text.strip().lower()
    factor = 1
    for unit, value in _UNITS.items():
        if number.endswith(unit):
            number, factor = number[: -len(unit)], value
            break
    try:
        return int(float(number) * factor)
    except (ValueError, OverflowError):
        raise UsageError(f"--max-shard-size {text!r}: a size such as 2GB, 500MiB, or bytes") from None

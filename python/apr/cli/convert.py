"""`apr convert`: convert models from one format to another."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.filesize import decimal

from apr.cli._console import printable, progress_bar
from apr.convert import ConvertOptions, convert
from apr.errors import UsageError
from apr.gguf.writer import GgufDtype
from apr.options import Unset

# GB is 10^9 bytes, as for transformers' `max_shard_size`; GiB is 2^30.
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
    """Convert a GGUF file, a safetensors file or a transformers directory to .apr, or .apr to another format.

    TARGET determines what is written. A name that ends in .apr, .safetensors or .gguf is a single file.
    model.apr.index.json and model.safetensors.index.json stand for several files in that directory. Any other
    name is a directory: a transformers model if SOURCE is .apr, and several .apr files otherwise. A .gguf
    file is for llama.cpp and Ollama; its SOURCE must be .apr. The tokenizer and the configuration are
    converted too. A conversion needs a few tens of megabytes of memory, whatever the size of the model.

    Example: apr convert Qwen2.5-0.5B/ qwen.apr

    Example: apr convert model.gguf model.apr --keep-quantized

    Example: apr convert run/ckpt/epoch-004.apr my-model/

    Example: apr convert run/ckpt/epoch-004.apr my-model.gguf --dtype q8_0

    Example: apr convert model.safetensors model.apr

    Example: apr convert large.apr several/model.apr.index.json --max-shard-size 2GB
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A GGUF, safetensors or .apr file, a transformers directory, or the index of a model in several
    files."""
    target: Annotated[Path, tyro.conf.Positional]
    """The file or directory to write."""
    dtype: Annotated[
        GgufDtype | None, Unset("as stored; f32 for quantized tensors, unless SOURCE and TARGET are .apr")
    ] = None
    """Data type to store floating-point tensors in, including dequantized ones. Those with a q in their names
    are for a .gguf TARGET, in which norms and biases are always f32. A value beyond the
    range of the type, such as 70,000 in f16, is refused with its tensor."""
    allow_overflow: bool = False
    """Store values beyond the range of --dtype as infinities instead of refusing them."""
    keep_quantized: bool = False
    """Keep quantized tensors as stored, whatever --dtype is. For GGUF sources, this applies to q4_k and q6_k.
    The target must be .apr."""
    max_shard_size: Annotated[str | None, Unset("5GB when TARGET is several files")] = None
    """Write several files of at most this size, such as 2GB, 500MiB, or a number of bytes."""
    no_tokenizer: bool = False
    """Leave out the tokenizer."""
    allow_mismatch: bool = False
    """Write the model even if its tensors are not those that its configuration describes."""
    force: bool = False
    """Replace an existing target directory if it holds only files that a conversion writes."""
    check: bool = False
    """Compare a .gguf TARGET with llama.cpp before it is written, whatever its size. Without the flag, files
    under 2 GB are compared if the package xllamacpp is installed. The file is not written unless llama.cpp
    predicts the same token as apr at 99 % of the positions in 8 texts."""
    no_check: bool = False
    """Do not compare a .gguf TARGET with llama.cpp."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Convert the model and print what was written."""
        started = time.monotonic()
        if self.check and self.no_check:
            raise UsageError("--check and --no-check exclude each other")
        options = ConvertOptions(
            dtype=self.dtype,
            allow_overflow=self.allow_overflow,
            keep_quantized=self.keep_quantized,
            max_shard_size=None if self.max_shard_size is None else _parse_size(self.max_shard_size),
            tokenizer=not self.no_tokenizer,
            allow_mismatch=self.allow_mismatch,
            force=self.force,
            check=None if self.check == self.no_check else self.check,
        )
        with progress_bar() as bar:
            task = bar.add_task("reading", total=None)

            def on_tensor(name: str, done: int, total: int) -> None:
                bar.update(task, description=printable(name), completed=done, total=total)

            result = convert(self.source, self.target, options, on_tensor=on_tensor)
        seconds = time.monotonic() - started
        if self.json:
            facts = {
                "source": str(result.source),
                "target": str(result.target),
                "tensors": result.tensors,
                "param_count": result.parameters,
                "size_bytes": result.nbytes,
                "seconds": round(seconds, 3),
                "notes": list(result.notes),
                "llama_cpp": None if result.agreement is None else asdict(result.agreement),
            }
            print(json.dumps(facts))
            return 0
        for note in result.notes:
            print(f"apr convert: note: {printable(note)}", file=sys.stderr)
        if result.agreement is not None:
            print(result.agreement)
        print(
            f"{printable(str(result.target))}: {result.tensors} tensors, "
            f"{result.parameters / 1e6:.1f} M parameters, {decimal(result.nbytes)}, "
            f"from {printable(result.source.name)} in {seconds:.1f} s"
        )
        return 0


def _parse_size(text: str) -> int:
    """Return the bytes of a size such as 2GB, 500MiB or 1000000."""
    number, factor = text.strip().lower(), 1
    for unit, nbytes in _UNITS.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), nbytes
            break
    try:
        return int(float(number) * factor)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--max-shard-size {text!r} is not a size such as 2GB, 500MiB, or a number of bytes"
        ) from None

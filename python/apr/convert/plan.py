"""What a conversion reads and writes: the source's format, the target's layout, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apr.container.shard_index import INDEX_SUFFIX
from apr.convert.directory import check_replaceable
from apr.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from apr.convert.stream import FloatDtype

SourceFormat = Literal["apr", "gguf", "hf", "safetensors"]
APR_INDEX = f"model{INDEX_SUFFIX}"
SAFETENSORS_INDEX = "model.safetensors.index.json"
# The safetensors package refuses a longer header; a file that claims one is something else.
_MAX_SAFETENSORS_HEADER = 100_000_000


class Layout(Enum):
    """What is written: one file, several files with their index, or a directory."""

    APR = ".apr"
    APR_SHARDS = "several .apr"
    SAFETENSORS = ".safetensors"
    SAFETENSORS_SHARDS = "several .safetensors"
    DIRECTORY = "directory"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert; the flags of `apr convert` have the same names."""

    dtype: FloatDtype | None = None
    """Store floating-point tensors in this dtype, quantized ones too (default: as stored; f32 for those that
    the target does not hold or the source is GGUF). Training state stays as it is."""
    keep_quantized: bool = False
    """To .apr: leave quantized tensors as they are, of GGUF's q4_k and q6_k, whatever the dtype."""
    max_shard_size: int | None = None
    """Bytes of a file of several (default: 5 GB, where several are written or transformers reads them)."""
    tokenizer: bool = True
    """Take the tokenizer along."""
    force: bool = False
    """Replace a directory that is there and holds a model: files that conversions write, no others."""


@dataclass(frozen=True)
class Plan:
    """A conversion that was checked and may start."""

    source: Path
    source_format: SourceFormat
    target: Path
    layout: Layout
    directory: Path
    """The directory that is written, or that the target file is in."""
    options: ConvertOptions


def make_plan(source: Path, target: Path, options: ConvertOptions) -> Plan:
    """Find out what is converted to what, and refuse what makes no sense before anything is read.

    Raises:
        UsageError: a pair of formats that makes no sense, or options that do not belong to it.
        UnsupportedError: a source of another format.
        RefusedError: a target directory that may not be replaced.
        OSError: the source cannot be read.
    """
    layout, directory = _layout(target)
    plan = Plan(source, _source_format(source), target, layout, directory, options)
    _check(plan)
    return plan


def _source_format(source: Path) -> SourceFormat:
    """The format of a source: by its bytes, not by its name."""
    if source.is_dir():
        if (source / "config.json").exists():
            return "hf"
        if any(source.glob("*.apr")):
            return "apr"
        raise UnsupportedError(
            f"{source}: neither config.json nor an .apr file in this directory (tensors alone: name the "
            "safetensors file, or the index of several)",
            path=source,
        )
    if source.name.endswith(".safetensors.index.json"):
        return "safetensors"
    if source.name.endswith(INDEX_SUFFIX):
        return "apr"
    with source.open("rb") as file:  # a missing file says so itself
        first = file.read(9)
    if first[:4] == b"GGUF":
        return "gguf"
    if first[:3] == b"APR":
        return "apr"
    # A safetensors file has no magic: it starts with the length of its header, which is a JSON object.
    if first[8:] == b"{" and int.from_bytes(first[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return "safetensors"
    # A pickle, or the zip archive that PyTorch puts it in.
    hint = " (a PyTorch checkpoint: save it as safetensors)" if first[:2] in {b"PK", b"\x80\x02"} else ""
    raise UnsupportedError(
        f"{source}: not a GGUF, safetensors or .apr file, nor a directory with config.json{hint}", path=source
    )


def _layout(target: Path) -> tuple[Layout, Path]:
    """What a target's name asks for, and the directory that it is in, or is."""
    if target.suffix == ".apr":
        return Layout.APR, target.parent
    if target.suffix == ".safetensors":
        return Layout.SAFETENSORS, target.parent
    if target.name == APR_INDEX:
        return Layout.APR_SHARDS, target.parent
    if target.name == SAFETENSORS_INDEX:
        return Layout.SAFETENSORS_SHARDS, target.parent
    if target.name.endswith(".index.json"):
        raise UsageError(f"{target}: the index of several files is called {APR_INDEX} or {SAFETENSORS_INDEX}")
    if target.suffix == ".gguf":
        raise UsageError(f"{target}: GGUF is read, not written")
    return Layout.DIRECTORY, target


def _check(plan: Plan) -> None:
    source, target, options, layout = plan.source, plan.target, plan.options, plan.layout
    from_apr = plan.source_format == "apr"
    to_safetensors = layout in {Layout.SAFETENSORS, Layout.SAFETENSORS_SHARDS}
    to_one_file = layout in {Layout.APR, Layout.SAFETENSORS}
    if options.keep_quantized and (to_safetensors or plan.source_format not in {"gguf", "apr"}):
        raise UsageError("--keep-quantized belongs to GGUF and .apr sources, and to .apr targets")
    if not options.tokenizer and (plan.source_format == "safetensors" or to_safetensors):
        raise UsageError(f"--no-tokenizer: there is none between {source} and {target}")
    if options.max_shard_size is not None and options.max_shard_size < 1:
        raise UsageError(f"--max-shard-size {options.max_shard_size}: at least one byte")
    if options.max_shard_size is not None and to_one_file:
        raise UsageError(f"--max-shard-size writes several files: name a directory instead of {target}")
    if not from_apr and to_safetensors:
        raise UsageError(f"{source} to {target}: go through an .apr file")
    if layout is Layout.APR and target.exists() and target.samefile(source):
        raise UsageError(f"{target}: is what is read: name another file")
    if layout is Layout.DIRECTORY and not from_apr and options.max_shard_size is None:
        raise UsageError(
            f"{target}: name a file that ends in .apr, or give --max-shard-size for a directory of several"
        )
    if layout is Layout.DIRECTORY and from_apr and options.keep_quantized:
        raise UsageError(f"{target}: transformers reads no quantized tensors of .apr: no --keep-quantized")
    if to_one_file:
        return
    whole = plan.directory.resolve()
    for path, what in ((source.resolve(), f"holds {source}"), (Path.cwd(), "holds the current directory")):
        if path.is_relative_to(whole):
            raise UsageError(
                f"{plan.directory}: {what}, and would be replaced as a whole: name another directory"
            )
    check_replaceable(plan.directory, force=options.force)

"""What a conversion reads and writes: the format of the source, the layout of the target, the options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from apr.container.load import load
from apr.container.shard_index import INDEX_SUFFIX
from apr.convert.directory import check_replaceable
from apr.convert.hf_files import CONFIG, WEIGHTS
from apr.convert.stream import FloatDtype
from apr.errors import UnsupportedError, UsageError
from apr.file_format import FileFormat, format_of_start
from apr.recognize import ADAPTER, adapter_directory, recognized

if TYPE_CHECKING:
    from apr.gguf.writer import GgufDtype

SourceFormat = FileFormat | Literal["hf"]
APR_INDEX = f"model{INDEX_SUFFIX}"
# One of several files of a model, with their number.
_SHARD = re.compile(r"model-\d{5,}-of-(\d{5,})\.safetensors")
# The names of files of other formats. Any other may be that of a directory: `Qwen2.5-0.5B` has a suffix too.
_FOREIGN = {
    "PyTorch checkpoints": (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mar"),
    "NumPy files": (".npz", ".npy"),
    "Keras or HDF5 files": (".h5", ".hdf5", ".keras"),
    "ONNX files": (".onnx", ".ort"),
    "TensorFlow files": (".tflite", ".pb"),
    "Flax files": (".msgpack",),
    "Core ML files": (".mlmodel", ".mlpackage"),
    "GGML files, the predecessor of GGUF": (".ggml", ".ggjt"),
    "archives": (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".7z"),
    "tables or texts": (".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".csv", ".parquet"),
}
SAFETENSORS_INDEX = "model.safetensors.index.json"


class Layout(Enum):
    """What is written: one file, several files with their index, or a directory."""

    APR = ".apr"
    APR_SHARDS = "several .apr"
    SAFETENSORS = ".safetensors"
    SAFETENSORS_SHARDS = "several .safetensors"
    GGUF = ".gguf"
    DIRECTORY = "directory"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert. The flags of `apr convert` have the same names."""

    dtype: GgufDtype | None = None
    """The dtype to store floating-point tensors in, including dequantized ones. None keeps them as stored,
    and dequantizes to f32 where the target cannot store a quantized tensor or the source is GGUF. The state
    of a training run is never cast. q8_0, q4_0, q4_1, q5_0 and q5_1 are only for .gguf targets; in those,
    norms and biases are always f32."""
    allow_overflow: bool = False
    """Whether values beyond the range of `dtype` become infinities. Otherwise they are refused."""
    keep_quantized: bool = False
    """Keep quantized tensors as stored, whatever `dtype` is; of a GGUF source, those in q4_k and q6_k. Only
    for .apr targets."""
    max_shard_size: int | None = None
    """Bytes of tensors per file, for targets of several files. None means 5 GB."""
    tokenizer: bool = True
    """Whether to include the tokenizer."""
    allow_mismatch: bool = False
    """Whether to write a model whose tensors are not those that its configuration describes."""
    force: bool = False
    """Whether to replace an existing target directory. It must hold only files that conversions write."""
    check: bool | None = None
    """Whether to compare a .gguf target with llama.cpp before it is written. None compares if the file takes
    less than 2 GB and the package xllamacpp is installed."""

    @property
    def float_dtype(self) -> FloatDtype | None:
        """`dtype` for a target that is not a .gguf file. `make_plan` refuses the others there."""
        return cast("FloatDtype | None", self.dtype)


@dataclass(frozen=True)
class Plan:
    """A conversion that passed all checks that need no tensors."""

    source: Path
    source_format: SourceFormat
    target: Path
    layout: Layout
    directory: Path
    """The directory that is written, or that holds the target file."""
    options: ConvertOptions


def make_plan(source: Path, target: Path, options: ConvertOptions) -> Plan:
    """Decide from the names and the first bytes what is converted to what.

    Raises:
        UsageError: the formats cannot be converted directly, or an option does not apply to them.
        UnsupportedError: the source has another format.
        RefusedError: the target directory must not be replaced.
        OSError: the source cannot be read.
    """
    source_format = _source_format(source)
    layout, directory = _layout(target)
    plan = Plan(source, source_format, target, layout, directory, options)
    _check(plan)
    return plan


def _source_format(source: Path) -> SourceFormat:
    """Return the format of the source, from its bytes and not from its name."""
    if adapter_directory(source):
        raise UnsupportedError(f"{source}: {recognized(source)}", path=source)
    if source.is_dir():
        if (source / CONFIG).exists():
            return "hf"
        if any(source.glob("*.apr")):
            return "apr"
        what = recognized(source) or (
            f"the directory has neither {CONFIG} nor an .apr file; to convert safetensors files without "
            f"{CONFIG}, pass the file or its index"
        )
        raise UnsupportedError(f"{source}: {what}", path=source)
    if source.name.endswith(".safetensors.index.json"):
        return "safetensors"
    if source.name.endswith(INDEX_SUFFIX):
        return "apr"
    # Until December 2025 the ecosystem's tools wrote safetensors files under .apr names.
    with source.open("rb") as file:
        start = file.read(9)
    if (found := format_of_start(start)) is not None:
        return found
    named_as_model = source.suffix in {".apr", ".gguf", ".safetensors"}
    if not named_as_model and (what := recognized(source)):
        raise UnsupportedError(f"{source}: not a model, but {what}", path=source)
    # The reader of .apr files names every format of a file that it recognizes, and what to do about it.
    load(source).close()
    return "apr"


def note_about(plan: Plan) -> str | None:
    """Return what to tell the user about a source that is only a part of a model, or None."""
    source, directory = plan.source, plan.source.parent
    is_index = source.name == SAFETENSORS_INDEX
    shard = _SHARD.fullmatch(source.name)
    if plan.source_format == "hf" and (source / ADAPTER).exists():
        return f"{source}: the adapter of {ADAPTER} is not applied; to apply it, merge it with PEFT first"
    if plan.source_format != "safetensors" or not (is_index or shard or source.name == WEIGHTS):
        return None
    if shard and int(shard[1]) > 1:
        what, command = f"one of the {int(shard[1])} files of a model", "pass its directory"
    else:
        what, command = "the tensors of a model alone, without a configuration", "pass its directory"
    if not (directory / CONFIG).is_file():
        if source.name == WEIGHTS:
            return None  # a file of tensors may have any name
        command = f"put its {CONFIG} into the directory, and pass that"
    return f"{source}: {what}; to convert the whole model, {command}: apr convert {directory} {plan.target}"


def _layout(target: Path) -> tuple[Layout, Path]:
    """Return what the target's name asks for, and the directory that it is or that it is in."""
    if target.suffix.lower() == ".apr":
        return Layout.APR, target.parent
    if target.suffix.lower() == ".safetensors":
        return Layout.SAFETENSORS, target.parent
    if target.name == APR_INDEX:
        return Layout.APR_SHARDS, target.parent
    if target.name == SAFETENSORS_INDEX:
        return Layout.SAFETENSORS_SHARDS, target.parent
    if target.name.endswith(".index.json"):
        raise UsageError(f"{target}: an index must be named {APR_INDEX} or {SAFETENSORS_INDEX}", path=target)
    if target.suffix.lower() == ".gguf":
        return Layout.GGUF, target.parent
    if not target.is_dir():
        _refuse_suffix(target)
    return Layout.DIRECTORY, target


def _refuse_suffix(target: Path) -> None:
    """Refuse the name of a file of another format, which would become a directory of that name."""
    suffix = target.suffix.lower()
    what = next((what for what, suffixes in _FOREIGN.items() if suffix in suffixes), None)
    if what is not None:
        raise UsageError(
            f"{target}: apr does not write {what}; choose a name that ends in .apr, .safetensors or .gguf, "
            "or a directory",
            path=target,
        )
    if close := get_close_matches(suffix, (".apr", ".safetensors", ".gguf"), n=1, cutoff=0.8):
        raise UsageError(f"{target}: did you mean {target.with_suffix(close[0]).name}?", path=target)


def _check(plan: Plan) -> None:
    """Refuse formats that cannot be converted directly, options that do not apply, and unsafe targets."""
    source, target, options, layout = plan.source, plan.target, plan.options, plan.layout
    from_apr = plan.source_format == "apr"
    to_safetensors = layout in {Layout.SAFETENSORS, Layout.SAFETENSORS_SHARDS}
    to_one_file = layout in {Layout.APR, Layout.SAFETENSORS, Layout.GGUF}
    if options.dtype not in {None, *get_args(FloatDtype)} and layout is not Layout.GGUF:
        raise UsageError(f"{target}: --dtype {options.dtype} needs a target that ends in .gguf", path=target)
    if options.check is not None and layout is not Layout.GGUF:
        raise UsageError(f"{target}: --check and --no-check need a target that ends in .gguf", path=target)
    if options.allow_overflow and options.dtype is None:
        raise UsageError("--allow-overflow needs --dtype")
    if options.allow_overflow and layout is Layout.GGUF:
        raise UsageError(
            f"{target}: --allow-overflow does not apply to a .gguf target, which cannot hold infinities",
            path=target,
        )
    if options.keep_quantized and layout is Layout.GGUF:
        raise UsageError(
            f"{target}: --keep-quantized needs an .apr target; use --dtype for a .gguf target", path=target
        )
    if options.keep_quantized and (to_safetensors or plan.source_format not in {"gguf", "apr"}):
        raise UsageError("--keep-quantized needs a GGUF or .apr source and an .apr target")
    if not options.tokenizer and (plan.source_format == "safetensors" or to_safetensors):
        raise UsageError(
            f"{target}: safetensors files never contain a tokenizer; leave out --no-tokenizer", path=target
        )
    if options.max_shard_size is not None and options.max_shard_size < 1:
        raise UsageError(f"--max-shard-size is {options.max_shard_size}; it must be at least 1 byte")
    if options.max_shard_size is not None and to_one_file:
        raise UsageError(
            f"{target}: --max-shard-size writes several files; choose a directory as target", path=target
        )
    if not from_apr and (to_safetensors or layout is Layout.GGUF):
        raise UsageError(
            f"{target}: cannot convert {source} to this format directly; convert it to .apr first",
            path=target,
        )
    if to_one_file and target.exists() and target.samefile(source):
        raise UsageError(f"{target}: the target is the source; choose another target", path=target)
    if layout is Layout.DIRECTORY and not from_apr and options.max_shard_size is None:
        raise UsageError(
            f"{target}: choose a target that ends in .apr, or pass --max-shard-size to write several files",
            path=target,
        )
    if layout is Layout.DIRECTORY and from_apr and options.keep_quantized:
        raise UsageError(
            f"{target}: --keep-quantized needs an .apr target, not a directory for transformers", path=target
        )
    if to_one_file:
        return
    # The directory is replaced as a whole; --force must not delete the source or the shell's own directory.
    # `apr convert dir/m.apr dir --force` once lost its source.
    directory = plan.directory.resolve()
    for path, what in ((source.resolve(), str(source)), (Path.cwd(), "the current directory")):
        if path.is_relative_to(directory):
            raise UsageError(
                f"{plan.directory}: the whole directory would be replaced, but it contains {what}; choose "
                "another one",
                path=plan.directory,
            )
    check_replaceable(plan.directory, force=options.force)

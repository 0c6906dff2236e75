"""Models from one format to another: GGUF, safetensors, transformers directories, `.apr`.

Stands above container, model and data: a transformers directory is written from a model's configuration and
with its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.container.file import load
from apr.container.metadata import SHARDING, encode
from apr.container.save import TensorSpec, write
from apr.container.sharded import INDEX_SUFFIX
from apr.convert.directory import check_replaceable, replacing_directory
from apr.convert.stream import FloatDtype, Item, Model, OnTensor, from_apr
from apr.errors import FormatError, UnsupportedError, UsageError
from apr.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

__all__ = ["Conversion", "FloatDtype", "convert"]

_INDEX = f"model{INDEX_SUFFIX}"


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    source: Path
    target: Path
    tensors: int
    parameters: int
    nbytes: int
    notes: tuple[str, ...] = ()
    """What a user should know about it, a line each."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert; the flags of `apr convert` have the same names."""

    dtype: FloatDtype | None = None
    """Store floating-point tensors in this dtype (default: as stored; f32 where the source is quantised)."""
    keep_quantized: bool = False
    """From GGUF: leave q4_k and q6_k tensors as they are."""
    max_shard_size: int | None = None
    """Bytes of a file of several; a .apr model is written as several files only where this is given."""
    tokenizer: bool = True
    """Take the tokenizer along."""
    force: bool = False
    """Replace a directory that is there and holds a model: files that conversions write, no others."""


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    options: ConvertOptions = ConvertOptions(),
    *,
    on_tensor: OnTensor | None = None,
) -> Conversion:
    """Convert a model, atomically; memory holds some tens of megabytes of it, however large it is.

    What is written follows from the names: a `target` that ends in .apr or .safetensors is one file;
    any other is a directory, a transformers one where `source` is .apr, and one of several .apr files (with
    `max_shard_size`) where it is something else.

    Args:
        source: a GGUF or safetensors file, a transformers directory, an .apr (an index or directory of
            several too).
        target: the file or directory to write.
        options: see there.
        on_tensor: called with (name, tensors done, tensors in all) before each tensor is read.

    Raises:
        UsageError: a pair of formats that makes no sense, or options that do not belong to it.
        RefusedError: a directory that is there, without `force`; one that holds more than a model; one that
            another conversion is writing.
        FormatError, UnsupportedError: the source lies, or holds what the target has no form for.
        WeightsError: tensors that are not those of the model that the metadata describe.
        OSError: reading or writing failed; what was at `target` is as it was.
    """
    source, target = Path(source), Path(target)
    kind = _kind(source)
    _check(source, target, kind, options)
    if kind == "apr":
        return _from_apr(source, target, options, on_tensor)
    model = _read(source, kind, options)
    try:
        encode(model.metadata)
    except (TypeError, ValueError) as error:  # NaN, for example, which JSON lacks but Python's reader takes
        raise FormatError(f"{source}: {error}", path=source) from None
    items = [
        item.cast(options.dtype).reported(n, len(model.items), on_tensor)
        for n, item in enumerate(model.items)
    ]
    if target.suffix == ".safetensors":
        raise UsageError(f"{source} to {target}: go through an .apr file")
    if target.suffix == ".apr":
        _write_apr(target, model.metadata, items)
        size = target.stat().st_size
    else:
        assert options.max_shard_size is not None  # `_check` has seen to it
        size = _write_shards(target, model.metadata, items, options.max_shard_size, force=options.force)
    return _made(source, target, items, size, model.notes)


def _kind(source: Path) -> str:
    """What a source is: by its bytes, not by its name."""
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
    if len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") <= 100_000_000:
        return "safetensors"
    # A pickle, or the archive that PyTorch puts it in.
    hint = " (a PyTorch checkpoint: save it as safetensors)" if first[:2] in {b"PK", b"\x80\x02"} else ""
    raise UnsupportedError(
        f"{source}: not a GGUF, safetensors or .apr file, nor a directory with config.json{hint}", path=source
    )


def _check(source: Path, target: Path, kind: str, options: ConvertOptions) -> None:
    if target.suffix == ".gguf":
        raise UsageError(f"{target}: GGUF is read, not written")
    if options.keep_quantized and kind != "gguf":
        raise UsageError("--keep-quantized belongs to GGUF sources")
    if not options.tokenizer and (kind == "safetensors" or target.suffix == ".safetensors"):
        raise UsageError(f"--no-tokenizer: there is none between {source} and {target}")
    if options.max_shard_size is not None and options.max_shard_size < 1:
        raise UsageError(f"--max-shard-size {options.max_shard_size}: at least one byte")
    is_file = target.suffix in {".apr", ".safetensors"}
    if is_file and options.max_shard_size is not None:
        raise UsageError(f"--max-shard-size writes several files: name a directory instead of {target}")
    if kind == "apr" and target.suffix == ".apr":
        raise UsageError(f"{source} is an .apr already: apr stamp changes its metadata")
    if is_file:
        return
    if kind != "apr" and options.max_shard_size is None:
        raise UsageError(
            f"{target}: name a file that ends in .apr, or give --max-shard-size for a directory of several"
        )
    whole = target.resolve()
    for path, what in ((source.resolve(), f"holds {source}"), (Path.cwd(), "holds the current directory")):
        if path.is_relative_to(whole):
            raise UsageError(f"{target}: {what}, and would be replaced as a whole: name another directory")
    check_replaceable(target, force=options.force)


def _read(source: Path, kind: str, options: ConvertOptions) -> Model:
    if kind == "gguf":
        from apr.convert import gguf

        return gguf.read(source, keep_quantized=options.keep_quantized, tokenizer=options.tokenizer)
    if kind == "safetensors":
        from apr.convert import safetensors

        several = source.name.endswith(".json")
        texts, items = safetensors.read_several(source) if several else safetensors.read(source)
        return Model(dict(texts), items)
    from apr.convert import hf

    return hf.read(source, tokenizer=options.tokenizer)


def _from_apr(source: Path, target: Path, options: ConvertOptions, on_tensor: OnTensor | None) -> Conversion:
    from apr.container.metadata import as_texts
    from apr.convert import hf, safetensors

    with load(source, verify="full") as file:  # what is damaged would be whole in the next format
        file.require_tensors()
        if target.suffix == ".safetensors":
            names = [name for name in file if not file.info(name).tied]
            items = [from_apr(file, name).cast(options.dtype) for name in names]
            items = [item.reported(n, len(items), on_tensor) for n, item in enumerate(items)]
            safetensors.write(target, items, as_texts(file.metadata))
            return _made(source, target, items, target.stat().st_size, ())
        size = options.max_shard_size or hf.SHARD_SIZE
        items, notes = hf.write(
            file,
            target,
            dtype=options.dtype,
            max_shard_size=size,
            tokenizer=options.tokenizer,
            force=options.force,
            on_tensor=on_tensor,
        )
    total = sum(path.stat().st_size for path in target.iterdir())
    return _made(source, target, items, total, notes)


def _write_apr(target: Path, metadata: Mapping[str, Any], items: list[Item]) -> None:
    named = {item.spec.name: item for item in items}

    def values(spec: TensorSpec) -> Iterator[NDArray[Any]]:
        return named[spec.name].stored()

    write(target, metadata, [item.spec for item in items], values)


def _write_shards(
    target: Path, metadata: Mapping[str, Any], items: list[Item], most: int, *, force: bool
) -> int:
    from apr._core import nbytes

    groups: list[list[Item]] = [[]]
    sizes = [0]
    for item in sorted(items, key=lambda item: item.spec.name):
        size = nbytes(item.spec.dtype, item.spec.shape)
        if groups[-1] and sizes[-1] + size > most:
            groups.append([])
            sizes.append(0)
        groups[-1].append(item)
        sizes[-1] += size
    sharding = {
        "shard_count": len(groups),
        "total_size": sum(sizes),
        "pattern": "model-{index:05}-of-{count:05}.apr",
    }
    where: dict[str, str] = {}
    with replacing_directory(target, force=force) as made:
        for i, group in enumerate(groups):
            name = f"model-{i + 1:05}-of-{len(groups):05}.apr"
            _write_apr(made / name, {**metadata, SHARDING: {**sharding, "shard_index": i}}, group)
            where |= {item.spec.name: name for item in group}
        write_json(made / _INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": where})
    return sum(path.stat().st_size for path in target.iterdir())


def _made(source: Path, target: Path, items: list[Item], size: int, notes: tuple[str, ...]) -> Conversion:
    return Conversion(source, target, len(items), sum(item.values for item in items), size, notes)

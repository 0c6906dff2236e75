"""Models from one format to another: GGUF, safetensors, transformers directories, `.apr`.

Stands above container, model and data: a transformers directory is written from a model's configuration and
with its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.container.dtypes import QUANTIZED
from apr.container.file import TRAINING_PREFIX, load
from apr.container.metadata import HF_TOKENIZER, SHARDING, encode, of_a_later_file
from apr.container.save import TensorSpec, write
from apr.container.sharded import INDEX_SUFFIX
from apr.convert.directory import check_replaceable, replacing_directory
from apr.convert.stream import FloatDtype, Item, Model, OnTensor, from_apr, grouped, stored_in
from apr.errors import FormatError, UnsupportedError, UsageError
from apr.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from apr.container.file import AprFile

__all__ = ["Conversion", "ConvertOptions", "FloatDtype", "OnTensor", "convert"]

_INDEX = f"model{INDEX_SUFFIX}"
# What a target's name asks for.
_APR, _SAFETENSORS, _DIRECTORY = ".apr", ".safetensors", "directory"
_APR_FILES, _SAFETENSORS_FILES = "several .apr", "several .safetensors"
_SEVERAL = {_INDEX: _APR_FILES, "model.safetensors.index.json": _SAFETENSORS_FILES}


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


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    options: ConvertOptions = ConvertOptions(),
    *,
    on_tensor: OnTensor | None = None,
) -> Conversion:
    """Convert a model, atomically; memory holds some tens of megabytes of it, however large it is.

    What is written follows from the names. A `target` that ends in .apr or .safetensors is one file; one that
    is called model.apr.index.json or model.safetensors.index.json is several, in that directory. Any other is
    a directory: a transformers one where `source` is .apr (with `max_shard_size`, several safetensors files
    where it names no architecture), one of several .apr files (with `max_shard_size`) where it is not.

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
    items = [item.cast(options.dtype) for item in model.items]
    return _write(source, target, replace(model, items=items), options, on_tensor)


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


def _layout(target: Path) -> tuple[str, Path]:
    """What a target's name asks for, and the directory that it is in, or is."""
    if target.suffix in {_APR, _SAFETENSORS}:
        return target.suffix, target.parent
    if target.name in _SEVERAL:
        return _SEVERAL[target.name], target.parent
    if target.name.endswith(".index.json"):
        raise UsageError(f"{target}: the index of several files is called {' or '.join(_SEVERAL)}")
    if target.suffix == ".gguf":
        raise UsageError(f"{target}: GGUF is read, not written")
    return _DIRECTORY, target


def _check(source: Path, target: Path, kind: str, options: ConvertOptions) -> None:
    layout, directory = _layout(target)
    to_safetensors = layout in {_SAFETENSORS, _SAFETENSORS_FILES}
    if options.keep_quantized and (to_safetensors or kind not in {"gguf", "apr"}):
        raise UsageError("--keep-quantized belongs to GGUF and .apr sources, and to .apr targets")
    if not options.tokenizer and (kind == "safetensors" or to_safetensors):
        raise UsageError(f"--no-tokenizer: there is none between {source} and {target}")
    if options.max_shard_size is not None and options.max_shard_size < 1:
        raise UsageError(f"--max-shard-size {options.max_shard_size}: at least one byte")
    if layout in {_APR, _SAFETENSORS} and options.max_shard_size is not None:
        raise UsageError(f"--max-shard-size writes several files: name a directory instead of {target}")
    if kind != "apr" and to_safetensors:
        raise UsageError(f"{source} to {target}: go through an .apr file")
    if layout == _APR and target.exists() and target.samefile(source):
        raise UsageError(f"{target}: is what is read: name another file")
    if layout in {_APR, _SAFETENSORS}:
        return
    if layout == _DIRECTORY and kind != "apr" and options.max_shard_size is None:
        raise UsageError(
            f"{target}: name a file that ends in .apr, or give --max-shard-size for a directory of several"
        )
    if layout == _DIRECTORY and kind == "apr" and options.keep_quantized:
        raise UsageError(f"{target}: transformers reads no quantized tensors of .apr: no --keep-quantized")
    whole = directory.resolve()
    for path, what in ((source.resolve(), f"holds {source}"), (Path.cwd(), "holds the current directory")):
        if path.is_relative_to(whole):
            raise UsageError(f"{directory}: {what}, and would be replaced as a whole: name another directory")
    check_replaceable(directory, force=options.force)


def _read(source: Path, kind: str, options: ConvertOptions) -> Model:
    if kind == "gguf":
        from apr.convert import gguf

        return gguf.read(source, keep_quantized=options.keep_quantized, tokenizer=options.tokenizer)
    if kind == "safetensors":
        from apr.convert import safetensors

        several = source.name.endswith(".json")
        texts, items = safetensors.read_several(source) if several else safetensors.read(source)
        return Model(safetensors.from_texts(texts), items)
    from apr.convert import hf

    return hf.read(source, tokenizer=options.tokenizer)


def _from_apr(source: Path, target: Path, options: ConvertOptions, on_tensor: OnTensor | None) -> Conversion:
    from apr.convert import hf

    layout, _ = _layout(target)
    with load(source, verify="full") as file:  # what is damaged would be whole in the next format
        file.require_tensors()
        alone = options.max_shard_size is not None and not hf.is_described(file.metadata)
        if layout != _DIRECTORY or alone:
            return _write(source, target, _stored(file, target, options), options, on_tensor)
        items, notes = hf.write(
            file,
            target,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size or hf.SHARD_SIZE,
            tokenizer=options.tokenizer,
            force=options.force,
            on_tensor=on_tensor,
        )
    return _made(source, target, items, _size(target), notes)


def _stored(file: AprFile, target: Path, options: ConvertOptions) -> Model:
    """Everything that is in an .apr file, as its next file holds it."""
    if target.exists() and any(target.samefile(one.path) for one in getattr(file, "files", [file])):
        raise UsageError(f"{target}: is one of the files that are read: name another file")
    to_apr = _layout(target)[0] in {_APR, _APR_FILES}
    quantized = stored_in if to_apr and (options.keep_quantized or options.dtype is None) else from_apr
    names = [name for name in file if not file.info(name).tied]
    state = [name for name in names if name.startswith(TRAINING_PREFIX)]
    items = [
        (quantized if file.info(name).dtype in QUANTIZED else from_apr)(file, name).cast(
            None if name.startswith(TRAINING_PREFIX) else options.dtype
        )
        for name in names
    ]
    metadata = {
        key: value
        for key, value in file.metadata.items()
        if key != SHARDING
        and (options.tokenizer or not (key == HF_TOKENIZER or key.startswith("tokenizer.")))
    }
    notes = [
        f"{file.path}: {count} {what}"
        for count, what in (
            (len(file) - len(names), "empty head, tied to the embedding, is left out"),
            (len(state), "tensors of a run's training state go along (a directory leaves them out)"),
        )
        if count
    ]
    return Model(metadata, items, tuple(notes))


def _write(
    source: Path, target: Path, model: Model, options: ConvertOptions, on_tensor: OnTensor | None
) -> Conversion:
    """Write a model in the form that the target's name asks for, or safetensors where the source is .apr."""
    from apr.convert import hf, safetensors

    metadata = model.metadata
    items = [item.reported(n, len(model.items), on_tensor) for n, item in enumerate(model.items)]
    most, force = options.max_shard_size or hf.SHARD_SIZE, options.force
    layout, directory = _layout(target)
    if layout == _APR:
        _write_apr(target, metadata, items)
    elif layout == _SAFETENSORS:
        safetensors.write(target, items, safetensors.to_texts(source, metadata))
    elif layout == _SAFETENSORS_FILES or (layout == _DIRECTORY and _kind(source) == "apr"):
        texts = safetensors.to_texts(source, metadata)
        with replacing_directory(directory, force=force) as made:
            safetensors.write_several(made, grouped(items, most), texts, {})
    else:
        _write_shards(directory, metadata, items, most, force=force)
    size = target.stat().st_size if layout in {_APR, _SAFETENSORS} else _size(directory)
    return _made(source, target, items, size, model.notes)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _write_apr(target: Path, metadata: Mapping[str, Any], items: list[Item]) -> None:
    named = {item.spec.name: item for item in items}

    def values(spec: TensorSpec) -> Iterator[NDArray[Any]]:
        return named[spec.name].stored()

    write(target, metadata, [item.spec for item in items], values)


def _write_shards(
    target: Path, metadata: Mapping[str, Any], items: list[Item], most: int, *, force: bool
) -> None:
    groups = grouped(sorted(items, key=lambda item: item.spec.name), most)
    total = sum(item.nbytes for item in items)
    sharding = {
        "shard_count": len(groups),
        "total_size": total,
        "pattern": "model-{index:05}-of-{count:05}.apr",
    }
    where: dict[str, str] = {}
    with replacing_directory(target, force=force) as made:
        for i, group in enumerate(groups):
            name = f"model-{i + 1:05}-of-{len(groups):05}.apr"
            said = metadata if i == 0 else of_a_later_file(metadata)
            _write_apr(made / name, {**said, SHARDING: {**sharding, "shard_index": i}}, group)
            where |= {item.spec.name: name for item in group}
        write_json(made / _INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _made(source: Path, target: Path, items: list[Item], size: int, notes: tuple[str, ...]) -> Conversion:
    return Conversion(source, target, len(items), sum(item.values for item in items), size, notes)

"""The one entry: `convert(source, target)` reads a model in one format and writes it in another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr.container.load import load
from apr.container.metadata import encode
from apr.convert import from_apr, from_gguf, from_hf, from_safetensors, to_apr, to_hf, to_safetensors
from apr.convert.directory import replacing_directory
from apr.convert.plan import ConvertOptions, Layout, Plan, make_plan
from apr.convert.stream import Model, OnTensor, grouped
from apr.errors import FormatError

if TYPE_CHECKING:
    from os import PathLike

# What transformers writes into a file, where a larger model is split.
_SHARD_SIZE = 5_000_000_000


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


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    options: ConvertOptions = ConvertOptions(),  # noqa: B008 (immutable)
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
        options: how to convert.
        on_tensor: called with (name, tensors done, tensors in all) before each tensor is read.

    Raises:
        UsageError: a pair of formats that makes no sense, or options that do not belong to it.
        RefusedError: a directory that is there, without `force`; one that holds more than a model; one that
            another conversion is writing.
        FormatError, UnsupportedError: the source lies, or holds what the target has no form for.
        WeightsError: tensors that are not those of the model that the metadata describe.
        OSError: reading or writing failed; what was at `target` is as it was.
    """
    plan = make_plan(Path(source), Path(target), options)
    if plan.source_format == "apr":
        return _convert_apr(plan, on_tensor)
    if plan.source_format == "gguf":
        model = from_gguf.read(
            plan.source, keep_quantized=options.keep_quantized, tokenizer=options.tokenizer
        )
    elif plan.source_format == "hf":
        model = from_hf.read(plan.source, tokenizer=options.tokenizer)
    else:
        model = from_safetensors.read_model(plan.source)
    try:
        encode(model.metadata)
    except (TypeError, ValueError) as error:  # NaN, for example, which JSON lacks but Python's reader takes
        raise FormatError(f"{plan.source}: {error}", path=plan.source) from None
    return _write(plan, replace(model, items=[item.cast(options.dtype) for item in model.items]), on_tensor)


def _convert_apr(plan: Plan, on_tensor: OnTensor | None) -> Conversion:
    # Every byte is verified first: what is damaged would be whole in the next format.
    with load(plan.source, verify="full") as file:
        file.require_tensors()
        if plan.layout is not Layout.DIRECTORY or (
            plan.options.max_shard_size is not None and not to_hf.is_described(file.metadata)
        ):
            return _write(plan, from_apr.read(file, plan), on_tensor)
        model = to_hf.write(
            file,
            plan.target,
            dtype=plan.options.dtype,
            max_shard_size=plan.options.max_shard_size or _SHARD_SIZE,
            tokenizer=plan.options.tokenizer,
            force=plan.options.force,
            on_tensor=on_tensor,
        )
    return _conversion(plan, model)


def _write(plan: Plan, model: Model, on_tensor: OnTensor | None) -> Conversion:
    """Write a model as the target's name asks; a directory holds safetensors where the source is .apr."""
    items = [item.reported(n, len(model.items), on_tensor) for n, item in enumerate(model.items)]
    max_shard_size = plan.options.max_shard_size or _SHARD_SIZE
    if plan.layout is Layout.APR:
        to_apr.write(plan.target, model.metadata, items)
    elif plan.layout is Layout.SAFETENSORS:
        texts = to_safetensors.to_texts(plan.source, model.metadata)
        to_safetensors.write(plan.target, items, texts)
    elif plan.layout is Layout.SAFETENSORS_SHARDS or (
        plan.layout is Layout.DIRECTORY and plan.source_format == "apr"
    ):
        texts = to_safetensors.to_texts(plan.source, model.metadata)
        with replacing_directory(plan.directory, force=plan.options.force) as made:
            to_safetensors.write_several(made, grouped(items, max_shard_size), texts, {})
    else:
        groups = grouped(sorted(items, key=lambda item: item.spec.name), max_shard_size)
        with replacing_directory(plan.directory, force=plan.options.force) as made:
            to_apr.write_several(made, model.metadata, groups)
    return _conversion(plan, model)


def _conversion(plan: Plan, model: Model) -> Conversion:
    if plan.layout in {Layout.APR, Layout.SAFETENSORS}:
        size = plan.target.stat().st_size
    else:
        size = sum(path.stat().st_size for path in plan.directory.iterdir())
    values = sum(item.values for item in model.items)
    return Conversion(plan.source, plan.target, len(model.items), values, size, model.notes)

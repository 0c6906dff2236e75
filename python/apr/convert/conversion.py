"""Convert a model: `convert(source, target)` reads one format and writes another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from apr.container.byte_dtypes import check_unreserved
from apr.container.load import load
from apr.container.metadata import encode
from apr.convert import (
    check_gguf,
    from_apr,
    from_gguf,
    from_hf,
    from_safetensors,
    to_apr,
    to_gguf,
    to_hf,
    to_safetensors,
)
from apr.convert.directory import replacing_directory
from apr.convert.plan import ConvertOptions, Layout, Plan, make_plan, note_about
from apr.convert.stream import ModelStream, OnTensor, split_into_shards, with_progress
from apr.errors import FormatError, RefusedError, WeightsError, about, named_extras
from apr.gguf.reader import ROPE_TENSORS
from apr.model.config import ModelConfig, names_family
from apr.model.match import mismatch
from apr.path_arguments import as_path

if TYPE_CHECKING:
    from os import PathLike

    from apr.container.tensor_file import TensorFile

# Bytes of tensors per file, as `save_pretrained` of transformers 4 splits them (50 GB in transformers 5).
_SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    source: Path
    target: Path
    tensors: int
    """Number of tensors."""
    parameters: int
    """Number of values in them."""
    nbytes: int
    """Size of the file, or of all files in the directory."""
    notes: tuple[str, ...] = ()
    """What the user should know about the conversion, one line each."""
    agreement: check_gguf.Agreement | None = None
    """How far llama.cpp agrees with `apr` about a GGUF file; None if they were not compared."""


@named_extras()
def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    options: ConvertOptions = ConvertOptions(),  # noqa: B008 (immutable)
    *,
    on_tensor: OnTensor | None = None,
) -> Conversion:
    """Convert a model to another format. The target appears complete or not at all.

    The name of the target determines what is written. A name that ends in .apr, .safetensors or .gguf is one
    file; a GGUF file is written from an .apr file.
    `model.apr.index.json` or `model.safetensors.index.json` is several files in that directory. Any other
    name is a directory. From an .apr source it becomes a transformers model; if the metadata name no
    architecture and `max_shard_size` is set, several safetensors files. From other sources it becomes several
    .apr files of `max_shard_size`.

    Tensors are read and written in chunks, so that memory stays at some tens of megabytes for any model.

    Args:
        source: a GGUF, safetensors or .apr file, a transformers directory, or the index of several files.
        target: the file or directory to write.
        options: how to convert.
        on_tensor: called with (name, number of tensors done, number of tensors) before each tensor is read,
            and once more before a GGUF file is compared with llama.cpp.

    Raises:
        UsageError: the formats cannot be converted directly, or an option does not apply to them.
        RefusedError: the target directory exists and `force` is not set, it holds more than a model, another
            conversion is writing to it, the metadata do not describe a model, llama.cpp cannot run the model,
            or it disagrees with `apr` about the GGUF file.
        UnavailableError: `check` is set, but the package xllamacpp is not installed.
        FormatError: the source is invalid.
        UnsupportedError: the source has something that the target cannot store.
        WeightsError: the tensors are not those of the model that the metadata describe, or a value is beyond
            the range of the dtype.
        OSError: reading or writing failed; an earlier target is unchanged.
    """
    order = "convert(source, target, options)"
    given = Path(as_path(source, "source", order))
    plan = make_plan(given, Path(as_path(target, "target", order, is_written=True)), options)
    # Values on their way do not know their file.
    with about(plan.source):
        return _convert(plan, on_tensor)


def _convert(plan: Plan, on_tensor: OnTensor | None) -> Conversion:
    options = plan.options
    if plan.source_format == "apr":
        return _convert_apr(plan, on_tensor)
    if plan.source_format == "gguf":
        keep_quantized, tokenizer = options.keep_quantized, options.tokenizer
        model = from_gguf.read(plan.source, keep_quantized=keep_quantized, tokenizer=tokenizer)
    elif plan.source_format == "hf":
        model = from_hf.read(plan.source, tokenizer=options.tokenizer)
    else:
        model = from_safetensors.read(plan.source)
    model = _checked(plan, model)
    note = note_about(plan)
    # A file that `apr convert` wrote describes its model.
    if note is not None and not (plan.source_format == "safetensors" and names_family(model.metadata)):
        model = replace(model, notes=(*model.notes, note))
    # Before any tensor is read: Python reads NaN and lone surrogates from JSON, but .apr cannot store them.
    try:
        check_unreserved(model.metadata)
        encode(model.metadata)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{plan.source}: {error}", path=plan.source) from None
    tensors = [
        tensor.cast(options.float_dtype, allow_overflow=options.allow_overflow) for tensor in model.tensors
    ]
    return _write(plan, replace(model, tensors=tensors), on_tensor)


def _checked(plan: Plan, model: ModelStream) -> ModelStream:
    """Check that the tensors are the parameters of the decoder in the metadata.

    Found here, a missing tensor costs a minute. Found by training, it costs a conversion and an upload.
    """
    try:
        config = ModelConfig.from_metadata(model.metadata)
    except RefusedError as error:
        # Files of tensors alone have no configuration. A transformers directory has its note already.
        if model.notes or not names_family(model.metadata):
            return model
        return replace(model, notes=(f"the model is stored, but apr cannot train it: {error}",))
    problem = mismatch(config, {tensor.spec.name: tensor.spec.shape for tensor in model.tensors})
    if problem is None:
        return model
    if not plan.options.allow_mismatch:
        raise WeightsError(
            f"{plan.source}: the tensors do not match the model in its configuration: {problem}; to write "
            "them anyway, pass --allow-mismatch",
            path=plan.source,
        )
    return replace(model, notes=(*model.notes, f"the tensors do not match the model: {problem}"))


def _convert_apr(plan: Plan, on_tensor: OnTensor | None) -> Conversion:
    # All bytes are verified first. The target gets checksums of its own, which would hide any damage.
    with load(plan.source, verify="full") as file:
        file.require_tensors()
        if plan.layout is Layout.GGUF:
            return _write_gguf(plan, file, on_tensor)
        tensors_alone = plan.options.max_shard_size is not None and not to_hf.is_described(file.metadata)
        if plan.layout is not Layout.DIRECTORY or tensors_alone:
            return _write(plan, from_apr.read(file, plan), on_tensor)
        model = to_hf.write(
            file,
            plan.target,
            dtype=plan.options.float_dtype,
            allow_overflow=plan.options.allow_overflow,
            max_shard_size=plan.options.max_shard_size or _SHARD_SIZE,
            tokenizer=plan.options.tokenizer,
            force=plan.options.force,
            on_tensor=on_tensor,
        )
    return _conversion(plan, model)


def _write_gguf(plan: Plan, file: TensorFile, on_tensor: OnTensor | None) -> Conversion:
    """Write a GGUF file, and compare it with llama.cpp before it gets its name."""
    options = plan.options
    model = to_gguf.read(file, dtype=options.dtype, tokenizer=options.tokenizer)
    skipped = check_gguf.reason_to_skip(model, wanted=options.check)
    agreements: list[check_gguf.Agreement] = []

    def compare(path: Path) -> None:
        if on_tensor is not None:
            on_tensor("comparing with llama.cpp", len(model.tensors), len(model.tensors))
        agreements.append(check_gguf.compare(path, model, file, target=plan.target))

    before_commit = compare if skipped is None else None
    to_gguf.write(model, plan.target, on_tensor=on_tensor, before_commit=before_commit)
    return Conversion(
        source=plan.source,
        target=plan.target,
        tensors=len(model.tensors),
        parameters=sum(prod(tensor.shape) for tensor in model.tensors if tensor.name not in ROPE_TENSORS),
        nbytes=plan.target.stat().st_size,
        notes=model.notes if not skipped else (*model.notes, f"not compared with llama.cpp: {skipped}"),
        agreement=agreements[0] if agreements else None,
    )


def _write(plan: Plan, model: ModelStream, on_tensor: OnTensor | None) -> Conversion:
    """Write a model in the layout of the plan, except as a transformers directory."""
    tensors = with_progress(model.tensors, lambda tensor: tensor.spec.name, on_tensor)
    max_shard_size = plan.options.max_shard_size or _SHARD_SIZE
    if plan.layout is Layout.APR:
        to_apr.write(plan.target, model.metadata, tensors)
    elif plan.layout is Layout.SAFETENSORS:
        texts = to_safetensors.to_texts(plan.source, model.metadata)
        to_safetensors.write(plan.target, tensors, texts)
    elif plan.layout is Layout.SAFETENSORS_SHARDS or (
        plan.layout is Layout.DIRECTORY and plan.source_format == "apr"
    ):
        texts = to_safetensors.to_texts(plan.source, model.metadata)
        shards = split_into_shards(tensors, max_shard_size)
        with replacing_directory(plan.directory, force=plan.options.force) as new:
            to_safetensors.write_several(new, shards, texts, {})
    else:
        # An .apr file stores tensors in name order, so that the shards follow one another too.
        ordered = sorted(tensors, key=lambda tensor: tensor.spec.name)
        shards = split_into_shards(ordered, max_shard_size)
        with replacing_directory(plan.directory, force=plan.options.force) as new:
            to_apr.write_several(new, model.metadata, shards)
    return _conversion(plan, model)


def _conversion(plan: Plan, model: ModelStream) -> Conversion:
    if plan.layout in {Layout.APR, Layout.SAFETENSORS}:
        size = plan.target.stat().st_size
    else:
        size = sum(path.stat().st_size for path in plan.directory.rglob("*") if path.is_file())
    parameters = sum(tensor.numel for tensor in model.tensors)
    return Conversion(plan.source, plan.target, len(model.tensors), parameters, size, model.notes)

"""Weights from a file into a model: each parameter exactly once, each tensor used, each one plausible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.errors import WeightsError
from apr.gguf.names import hf_name, unpermute
from apr.model.names import EMBEDDING, HEAD, HEADS, TRAINING_PREFIX, check_layers, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from apr.container.tensor_file import TensorFile
    from apr.model.config import ModelConfig

# Weights of trained models have a root mean square of 1e-3 to 1; norms and biases stay below a few hundred.
_MAX_RMS, _MAX_VECTOR = 10.0, 1e5
# Two-byte floats under the wrong tag give themselves away by their spread, whatever their scale. Of normally
# distributed values a fifth lie within a quarter of their RMS of zero and one in 10,000 within 1e-4 of it.
# bf16 read as f16 keeps only the top bits of the exponent: nearly all values between 0.5 and 2, next to none
# nearer to zero. f16 read as bf16 stretches each factor of 2 to 256: most become next to nothing.
_NEAR, _LEAST_NEAR = 0.25, 0.01
_TINY, _MOST_TINY = 1e-4, 0.1
_ENOUGH_VALUES, _SAMPLE = 256, 65536


def has_head(file: TensorFile) -> bool:
    """Whether the file holds an output projection that is not empty."""
    return any(name in file and not file.info(name).tied for name in HEADS)


def fill(config: ModelConfig, parameters: Iterable[tuple[str, nn.Parameter]], file: TensorFile) -> None:
    """Copy every weight of `file` into the named parameters of a decoder, on their device and in their dtype.

    GGUF's names are translated, and with them Llama's q and k rows are put in transformers' order; a head
    that is a copy of a tied embedding is compared and left out.

    Raises:
        WeightsError: parameters that stay empty, tensors that have no place, shapes that differ, values
            that no weights have.
    """
    sources = match(config, file)
    with torch.no_grad():
        for name, parameter in parameters:
            source = sources[name]
            values = _plausible(file, source, name)
            parameter.copy_(_in_order(values, source, name, config))


def match(config: ModelConfig, file: TensorFile) -> dict[str, str]:
    """The tensor of `file` for each parameter, from names and shapes alone.

    Raises:
        WeightsError: parameters that would stay empty, tensors that have no place, shapes that differ.
    """
    check_layers(file.path, config, len(file))
    shapes, sources = parameter_shapes(config), _sources(file)
    if config.tie_word_embeddings and HEAD in sources:
        _check_copy(file, sources.pop(HEAD), sources)
    missing = [name for name in shapes if name not in sources]
    left_over = [source for name, source in sources.items() if name not in shapes]
    misfits = [
        f"{sources[name]} is {list(found)}, the model's {name} is {list(wanted)}"
        for name, wanted in shapes.items()
        if name in sources and not _fits(found := file.info(sources[name]).shape, wanted, name)
    ]
    parts = [f"{len(missing)} parameters are not in the file: {_listed(missing)}"] if missing else []
    if left_over:
        parts.append(f"{len(left_over)} tensors have no place in the model: {_listed(left_over)}")
    if misfits:
        parts.append(_listed(misfits))
    if parts:
        raise WeightsError(f"{file.path}: {'; '.join(parts)}")
    return sources


def check_values(config: ModelConfig, file: TensorFile) -> None:
    """What `fill` checks of the values, without a model to fill.

    Raises:
        WeightsError: values that no weights have; names every such tensor.
    """
    problems = []
    for name, source in match(config, file).items():
        try:
            _plausible(file, source, name)
        except WeightsError as error:
            problems.append(str(error).removeprefix(f"{file.path}: "))
    if problems:
        raise WeightsError(f"{file.path}: {_listed(problems)}")


def _plausible(file: TensorFile, source: str, name: str) -> Tensor:
    values = file[source].flatten() if name.endswith(".bias") else file[source]
    if not values.is_floating_point():
        raise WeightsError(f"{file.path}: {source} holds {values.dtype} values, weights are floating point")
    problem = implausible(name, values)
    if problem is not None:
        raise WeightsError(
            f"{file.path}: {source}: {problem}: are its dtype and its bytes what they should be?"
        )
    return values


def _fits(found: tuple[int, ...], wanted: tuple[int, ...], name: str) -> bool:
    # Some writers keep biases as rows.
    return found == wanted or (name.endswith(".bias") and found == (1, *wanted))


def implausible(name: str, values: Tensor) -> str | None:
    """What keeps values from being trained weights, or None.

    Args:
        name: transformers' name of the parameter.
        values: of any floating dtype.
    """
    flat = values.detach().flatten().float()
    # The sum of squares overflows only far beyond what is allowed below; NaN and infinities go through it.
    rms = float((flat.square().sum(dtype=torch.float64) / max(1, flat.numel())).sqrt())
    if not torch.isfinite(flat).all():
        return f"{int((~torch.isfinite(flat)).sum())} of {flat.numel()} values are NaN or infinite"
    if values.dim() < 2:
        largest = float(flat.abs().max()) if flat.numel() else 0.0
        return f"values up to {largest:.3g}" if largest > _MAX_VECTOR else None
    if rms > _MAX_RMS:
        return f"root mean square {rms:.3g}"
    if rms == 0:
        return "all zero" if name == EMBEDDING else None
    # A sample decides it: every k-th value, k odd, so that it does not fall on one column.
    sample = flat[:: max(1, flat.numel() // _SAMPLE) | 1].abs() / rms
    if sample.numel() < _ENOUGH_VALUES:
        return None
    if float((sample < _NEAR).float().mean()) < _LEAST_NEAR:
        return "next to no values near zero, as of bf16 bytes tagged f16"
    # Zeros are left out: pruned weights are no sign of anything.
    if float((sample[sample > 0] < _TINY).float().mean()) > _MOST_TINY:
        return "most values next to nothing beside a few, as of f16 bytes tagged bf16"
    return None


def spoiled(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of named tensors whose values no weights have, and why; None if all are good."""
    for name, values in tensors:
        problem = implausible(name, values)
        if problem is not None:
            return f"{name}: {problem}"
    return None


def _sources(file: TensorFile) -> dict[str, str]:
    """transformers' name: the file's name, without training state and empty heads."""
    sources: dict[str, str] = {}
    for name in file:
        if name.startswith(TRAINING_PREFIX) or (name in HEADS and file.info(name).tied):
            continue
        target = hf_name(name) or name
        if target in sources:
            raise WeightsError(f"{file.path}: {sources[target]} and {name} are both {target}")
        sources[target] = name
    return sources


def _check_copy(file: TensorFile, head: str, sources: dict[str, str]) -> None:
    embedding = sources.get(EMBEDDING)
    if embedding is not None and not torch.equal(file[head], file[embedding]):
        raise WeightsError(
            f"{file.path}: the metadata say that the head is tied, but {head} differs from {embedding}: "
            "correct tie_word_embeddings or remove the head"
        )


def _in_order(values: Tensor, source: str, name: str, config: ModelConfig) -> Tensor:
    """Rows in transformers' order: only names tell that a file has GGUF's."""
    if source == name or config.family != "llama":
        return values
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    # The permutation moves whole rows: any two-byte type will do for bfloat16, which NumPy lacks.
    raw = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    return torch.from_numpy(unpermute(raw.numpy(), heads)).view(values.dtype)


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

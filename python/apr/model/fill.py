"""Fill a decoder from a file: each parameter exactly once, each tensor used, and only plausible values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from apr.container.torch_values import narrowed
from apr.errors import WeightsError
from apr.gguf.names import unpermute
from apr.model.match import listed, match_names, permuted_heads
from apr.model.names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from apr.container.tensor_file import TensorFile
    from apr.model.config import ModelConfig

# Matrices of trained models have a root mean square of 1e-3 to 1; norms and biases stay below a few hundred.
_MAX_RMS, _MAX_VECTOR = 10.0, 1e5
# Matrices of a damaged or mislabeled file must not reach training. A file whose bf16 bytes were labeled f16
# once did, and its loss was 18.55.
# Two-byte floats that are read in the wrong dtype have a wrong spread, whatever their scale. Of normally
# distributed values, a fifth is within a quarter of the RMS from zero, and one in 10,000 within 1e-4 of it.
# bf16 read as f16 keeps only the top bits of the exponent: nearly all values are between 0.5 and 2, and
# almost none closer to zero. f16 read as bf16 turns each factor of 2 into 256: most values become nearly
# zero.
_NEAR, _LEAST_NEAR = 0.25, 0.01
_TINY, _MOST_TINY = 1e-4, 0.1
# A share of 1 % of fewer than 256 values says nothing. A sample keeps the check of a large embedding short.
_ENOUGH_VALUES, _SAMPLE = 256, 65536


def fill(config: ModelConfig, parameters: Iterable[tuple[str, Tensor]], file: TensorFile) -> None:
    """Copy the weights of a file into the parameters of a decoder, on their device and in their dtype.

    GGUF's names and row order are translated. A stored copy of a tied embedding is compared and left out.

    Args:
        config: the decoder's configuration.
        parameters: the decoder's parameters by name, as `named_parameters()` gives them.
        file: the opened file.

    Raises:
        WeightsError: a parameter has no tensor, a tensor has no parameter, shapes differ, or the values are
            not those of a trained model.
    """
    sources = match(config, file)
    with torch.no_grad():
        for name, parameter in parameters:
            source = sources[name]
            values = _read_plausible(file, source, name)
            heads = permuted_heads(config, source, name)
            if heads is not None:
                # NumPy has no bfloat16. The permutation moves whole rows, so that any two-byte type will do.
                raw = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
                values = torch.from_numpy(unpermute(raw.numpy(), heads)).view(values.dtype)
            # The stored bytes cross the bus, and are converted on the device.
            values, overflow = narrowed(values.to(parameter.device), parameter.dtype)
            if overflow is not None and overflow:
                raise WeightsError(
                    f"{file.path}: {source}: a value is beyond the range of {parameter.dtype}; choose "
                    "another dtype",
                    path=file.path,
                    tensor=source,
                )
            parameter.copy_(values)


def match(config: ModelConfig, file: TensorFile) -> dict[str, str]:
    """Return the name of the tensor in `file` for each parameter.

    Raises:
        WeightsError: a parameter has no tensor, a tensor has no parameter, shapes differ, or a stored head
            differs from the embedding that it is tied to.
    """
    result = match_names(config, file)
    if result.head_copy is not None:
        embedding = result.sources[EMBEDDING]
        if not torch.equal(file[result.head_copy], file[embedding]):
            raise WeightsError(
                f"{file.path}: tie_word_embeddings is true, but {result.head_copy} differs from {embedding}; "
                "correct tie_word_embeddings or remove the head",
                path=file.path,
            )
    return result.sources


def check_values(config: ModelConfig, file: TensorFile) -> None:
    """Check the values as `fill` does, without a model to fill.

    Raises:
        WeightsError: values are not those of a trained model. The message names all such tensors.
    """
    problems = []
    for name, source in match(config, file).items():
        try:
            _read_plausible(file, source, name)
        except WeightsError as error:
            problems.append(str(error).removeprefix(f"{file.path}: "))
    if problems:
        raise WeightsError(f"{file.path}: {listed(problems)}", path=file.path)


def _read_plausible(file: TensorFile, source: str, name: str) -> Tensor:
    values = file[source]
    # Some writers store vectors as matrices with one row.
    if values.dim() == 2 and name.endswith((".bias", "norm.weight")):
        values = values.flatten()
    if not values.is_floating_point():
        raise WeightsError(
            f"{file.path}: {source} has dtype {values.dtype}, but weights are floating-point numbers",
            path=file.path,
        )
    if values.itemsize == 1:  # torch does not compute with eight-bit dtypes
        values = values.float()
    problem = implausible(name, values)
    if problem is not None:
        raise WeightsError(f"{file.path}: {source}: {problem}; check its dtype and its bytes", path=file.path)
    return values


def implausible(name: str, values: Tensor) -> str | None:
    """Return why values are not trained weights, or None if they may be.

    Args:
        name: the parameter's name in transformers.
        values: a tensor of any floating-point dtype.
    """
    flat = values.detach().flatten().float()
    # The sum of squares overflows only far beyond what is allowed below; NaN and infinities go through it.
    rms = float((flat.square().sum(dtype=torch.float64) / max(1, flat.numel())).sqrt())
    if not torch.isfinite(flat).all():
        return f"{int((~torch.isfinite(flat)).sum())} of {flat.numel()} values are NaN or infinite"
    if values.dim() < 2:
        largest = float(flat.abs().max()) if flat.numel() else 0.0
        return (
            f"the largest value is {largest:.3g}, too large for trained weights"
            if largest > _MAX_VECTOR
            else None
        )
    if rms > _MAX_RMS:
        return f"the root mean square of the values is {rms:.3g}, too large for trained weights"
    if rms == 0:
        # Other matrices may be zero: pruned layers are.
        return "all values are zero" if name == EMBEDDING else None
    # Every k-th value. k is odd, because row lengths are even, and an even k could stay within a few columns.
    sample = flat[:: max(1, flat.numel() // _SAMPLE) | 1].abs() / rms
    if sample.numel() < _ENOUGH_VALUES:
        return None
    if float((sample < _NEAR).float().mean()) < _LEAST_NEAR:
        return "almost no values are close to zero, as if bf16 bytes were labeled f16"
    # Zeros do not count: pruned weights have many.
    if float((sample[sample > 0] < _TINY).float().mean()) > _MOST_TINY:
        return "most values are close to zero beside a few large ones, as if f16 bytes were labeled bf16"
    return None


def first_implausible(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the first tensor that is not trained weights, with the reason, or None if all may be."""
    for name, values in tensors:
        problem = implausible(name, values)
        if problem is not None:
            return f"{name}: {problem}"
    return None

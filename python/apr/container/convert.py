"""Other formats to `.apr`, one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr.container.gguf import GgufModel
from apr.container.save import TensorSpec, write
from apr.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import NDArray

FloatDtype = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    source: Path
    target: Path
    tensors: int
    parameters: int
    nbytes: int


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    dtype: FloatDtype | None = None,
    on_tensor: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Write a model file as `.apr`, atomically; memory holds one tensor at a time.

    Args:
        source: a GGUF file of the Llama or Qwen2 family.
        target: the .apr file; replaced if it is there.
        dtype: store every tensor so; by default f32, f16 and bf16 stay and quantised types become f32,
            bit for bit what `gguf.dequantize` gives.
        on_tensor: called with (name, tensors done, tensors in all) before each tensor is read.

    Raises:
        FormatError: the source's structure lies.
        UnsupportedError: a format, family or feature that is not read.
    """
    source, target = Path(source), Path(target)
    if source.is_dir() or source.suffix != ".gguf":
        with source.open("rb") as file:  # a missing file and a directory say so themselves
            magic = file.read(4)
        if magic != b"GGUF":
            raise UnsupportedError(f"{source}: only GGUF files are converted, this is none", path=source)
    model = GgufModel(source)
    specs = [TensorSpec(t.name, dtype or t.dtype, t.shape) for t in model.tensors.values()]
    done = 0

    def values(spec: TensorSpec) -> NDArray[Any]:
        nonlocal done
        if on_tensor is not None:
            on_tensor(spec.name, done, len(specs))
        done += 1
        tensor = model.tensors[spec.name]
        return _cast(tensor.values(), tensor.dtype, spec.dtype)

    write(target, model.metadata, specs, values)
    parameters = sum(int(np.prod(spec.shape, dtype=np.int64)) for spec in specs)
    return Conversion(source, target, len(specs), parameters, target.stat().st_size)


def _cast(values: NDArray[Any], stored: str, wanted: str) -> NDArray[Any]:
    """Round to the wanted dtype, to nearest even; bf16 is raw uint16 on both sides."""
    if stored == wanted:
        return values
    import ml_dtypes

    if stored == "bf16":
        values = values.view(ml_dtypes.bfloat16)
    if wanted == "bf16":
        return values.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return values.astype(np.float32 if wanted == "f32" else np.float16)

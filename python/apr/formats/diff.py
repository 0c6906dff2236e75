"""`apr.diff`: compare two models of any format.

Files of one format are compared by the names that they store. Otherwise each tensor is compared under its
name in transformers, with its rows in transformers' order.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from apr.container.diff import Diff, check_tolerance, compare
from apr.container.metadata import HF_CONFIG
from apr.container.tensor_file import TensorFile
from apr.convert.hf_files import CONFIG
from apr.errors import FormatError, RefusedError, WeightsError
from apr.formats.foreign import ForeignFile, any_range
from apr.formats.open import open_model
from apr.gguf.names import hf_name, unpermute
from apr.model.config import ModelConfig
from apr.model.match import permuted_heads
from apr.model.names import EMBEDDING, HEAD, TRAINING_PREFIX, fused_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from apr.container.model_file import ModelFile, Values


def diff(a: str | PathLike[str], b: str | PathLike[str], *, atol: float | None = None) -> Diff:
    """Compare two models. Memory does not grow with their size.

    Without `atol`, values of the same dtype are compared bit by bit: a NaN equals a NaN with the same bits,
    and 0.0 differs from -0.0. With `atol`, and between dtypes, values are compared as numbers, and all NaNs
    are equal. Quantized tensors are compared by their float32 values. Metadata are compared as JSON (1 and
    1.0 differ); the order of keys does not matter.

    Between two formats, tensors are compared under transformers' names and by their values alone, whatever
    their dtypes. The metadata compared are then those that determine the decoder, if both models have them.
    The state of a training run is left out.

    Args:
        a: the first model: an .apr, safetensors or GGUF file, an index, or a directory.
        b: the second model.
        atol: the absolute difference up to which values count as equal.

    Raises:
        AprError: a file does not open; the error has the path, tensor and byte.
        UnsupportedError: a version 1 file that does not describe its payload as tensors; a GGUF file of an
            architecture whose names are not known, against another format; a dtype whose values are not read.
        WeightsError: two tensors of a file have the same name in transformers.
        ValueError: `atol` is negative, infinite or NaN.
        OSError: a file cannot be opened or read.
    """
    check_tolerance(atol)
    with open_model(a) as one, open_model(b) as two:
        # A version 1 file may be opened for its metadata alone; two of those would look equal without a value
        # compared.
        one.require_tensors()
        two.require_tensors()
        if _naming(one) == _naming(two):
            result = compare(one, two, atol=atol)
            if one.form == "safetensors":
                result = _without_lone_configuration(result)
        else:
            result = _by_parameter(_parameters(one), _parameters(two), atol)
    return replace(result, a=os.fspath(a), b=os.fspath(b))


@dataclass
class _Parameters:
    """A model whose tensors have transformers' names and order of rows."""

    path: str
    tensors: dict[str, Values]
    config: ModelConfig | None
    """What determines the decoder; None if the file does not tell."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The metadata to compare."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def slice(self, name: str) -> Values:
        return self.tensors[name]


@dataclass(frozen=True)
class _View:
    """Values in another order, or some of the rows of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    flat: Callable[[int, int], NDArray[Any]]


def _without_lone_configuration(result: Diff) -> Diff:
    """Leave out the config.json of a directory that is compared with a safetensors file alone."""
    for path, side in ((result.a, result.removed), (result.b, result.added)):
        if HF_CONFIG in side:
            note = f"{CONFIG} is only beside {path}, and not compared"
            removed = {key: value for key, value in result.removed.items() if key != HF_CONFIG}
            added = {key: value for key, value in result.added.items() if key != HF_CONFIG}
            return replace(result, removed=removed, added=added, notes=(*result.notes, note))
    return result


def _naming(file: ModelFile) -> tuple[str, bool]:
    """Return the format, and whether an .apr file has GGUF's names, as some importers leave them."""
    if isinstance(file, TensorFile):
        return "apr", any(hf_name(name) is not None for name in file)
    return file.form, False


def _parameters(file: ModelFile) -> _Parameters:
    if isinstance(file, TensorFile):
        return _of_apr(file)
    assert isinstance(file, ForeignFile)
    if file.form == "GGUF":
        return _of_gguf(file)
    tensors: dict[str, Values] = {name: file.slice(name) for name in file}
    config = None
    if HF_CONFIG in file.metadata:
        with suppress(RefusedError):
            config = ModelConfig.from_hf(file.metadata[HF_CONFIG], head_present=HEAD in tensors)
    return _Parameters(file.path, tensors, config)


def _of_apr(file: TensorFile) -> _Parameters:
    names = [name for name in file if not name.startswith(TRAINING_PREFIX) and not file.info(name).tied]
    sources: dict[str, str] = {}
    for name in names:
        parameter = hf_name(name) or name
        if parameter in sources:
            raise WeightsError(
                f"{file.path}: {sources[parameter]} and {name} are both {parameter}; remove one of them",
                path=file.path,
            )
        sources[parameter] = name
    config = _config(file.metadata, head_present=HEAD in sources)
    tensors: dict[str, Values] = {}
    for parameter, name in sources.items():
        heads = None if config is None else permuted_heads(config, name, parameter)
        values: Values = file.slice(name)
        tensors[parameter] = values if heads is None else _reordered(file.path, name, values, heads)
    return _Parameters(file.path, tensors, config)


def _of_gguf(file: ForeignFile) -> _Parameters:
    from apr.formats.gguf import stored_tensor
    from apr.gguf.metadata import model_metadata
    from apr.gguf.reader import GgufFile

    gguf = GgufFile(file.file_paths[0])
    tensors: dict[str, Values] = {name: stored_tensor(tensor) for name, tensor in gguf.tensors.items()}
    config = _config(model_metadata(gguf), head_present=HEAD in tensors)
    return _Parameters(file.path, tensors, config)


def _reordered(path: str, name: str, values: Values, heads: int) -> _View:
    rows, count = values.shape[0], prod(values.shape)
    if rows % (2 * heads):
        raise FormatError(
            f"{path}: {name}: {rows} rows cannot be divided among {heads} heads", path=path, tensor=name
        )

    def read(start: int, stop: int) -> NDArray[Any]:
        stored = values.flat(start, stop)
        in_rows = stored.reshape(-1, prod(values.shape[1:]))
        return unpermute(in_rows, (stop - start) * heads // count).reshape(-1)

    return _View(values.shape, values.dtype, any_range(read, count // heads, count))


def _config(metadata: Mapping[str, Any], *, head_present: bool) -> ModelConfig | None:
    try:
        return ModelConfig.from_metadata(metadata, head_present=head_present)
    except RefusedError:
        return None


def _facts(config: ModelConfig) -> dict[str, Any]:
    """Return what determines the decoder, with one value for what is the same in all layers."""
    # Without the family's name: GGUF calls several of transformers' families llama.
    facts = {key: value for key, value in asdict(config).items() if key not in {"family", "layers"}}
    layers = [_leaves("layers", asdict(layer)) for layer in config.layers]
    for key in sorted({key for layer in layers for key in layer}):
        values = [layer.get(key) for layer in layers]
        facts[key] = values[0] if all(value == values[0] for value in values) else values
    return facts


def _leaves(prefix: str, facts: dict[str, Any]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix}.{key}"
        leaves |= _leaves(name, value) if isinstance(value, dict) else {name: value}
    return leaves


def _split_fused(side: _Parameters, config: ModelConfig) -> None:
    """Replace tensors that hold several parameters, such as Phi-3's qkv_proj, by those parameters."""
    # Forged metadata may ask for a billion layers.
    if config.num_layers > len(side.tensors):
        return
    fused = fused_parts(config)
    tensors: dict[str, Values] = {}
    for name, values in side.tensors.items():
        parts = fused.get(name)
        if parts is not None and values.shape and values.shape[0] == sum(parts.values()):
            tensors |= _rows(values, parts)
        else:
            tensors[name] = values
    side.tensors = tensors


def _rows(values: Values, parts: dict[str, int]) -> dict[str, Values]:
    """Return views of the rows of a tensor: `parts` are their names and numbers, one after the other."""
    views: dict[str, Values] = {}
    width, first = prod(values.shape[1:]), 0
    for name, rows in parts.items():

        def flat(start: int, stop: int, before: int = first * width) -> NDArray[Any]:
            return values.flat(before + start, before + stop)

        views[name] = _View((rows, *values.shape[1:]), values.dtype, flat)
        first += rows
    return views


def _by_parameter(a: _Parameters, b: _Parameters, atol: float | None) -> Diff:
    notes = ["tensors are compared by their names in transformers, and by their values whatever the dtype"]
    known = a.config or b.config
    if known is not None:
        for side in (a, b):
            _split_fused(side, known)
            if known.tie_word_embeddings and EMBEDDING not in side and HEAD in side:
                side.tensors[EMBEDDING] = side.tensors[HEAD]
    for one, other in ((a, b), (b, a)):
        notes += _share_embedding(one, other, atol)
    unknown = [side.path for side in (a, b) if side.config is None]
    if unknown:
        notes.append(f"metadata are not compared: {' and '.join(unknown)} does not describe a decoder")
    elif a.config is not None and b.config is not None:
        a.metadata, b.metadata = _facts(a.config), _facts(b.config)
    return compare(a, b, atol=atol, values_only=True, notes=tuple(notes))


def _share_embedding(a: _Parameters, b: _Parameters, atol: float | None) -> list[str]:
    """Give `b` a head if only `a` stores one and `b` ties its own to the embedding. Return notes."""
    if HEAD in b or HEAD not in a or EMBEDDING not in b:
        return []
    embedding = b.tensors[EMBEDDING]
    # A safetensors file alone does not tell whether its head is tied: the values decide.
    if b.config is None or not b.config.tie_word_embeddings:
        head = _Parameters(a.path, {HEAD: a.tensors[HEAD]}, None)
        tied = _Parameters(b.path, {HEAD: embedding}, None)
        if not compare(head, tied, atol=atol, values_only=True).same:
            return []
    b.tensors[HEAD] = embedding
    return [f"{b.path} stores no {HEAD}; its {EMBEDDING} is compared instead"]

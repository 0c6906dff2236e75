"""Which tensor of a file belongs to which parameter of a decoder, from names and shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.errors import WeightsError
from apr.gguf.names import PERMUTED, hf_name
from apr.model.names import HEAD, HEADS, TRAINING_PREFIX, check_layers, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apr.container.tensor_file import TensorFile
    from apr.model.config import ModelConfig

# Names that an error lists.
_MAX_LISTED = 8


@dataclass(frozen=True)
class Match:
    """The tensors of a file that are the parameters of a decoder."""

    sources: dict[str, str]
    """The name in the file for each parameter, by its name in transformers."""
    head_copy: str | None
    """The name of a head that the file stores although the metadata tie it to the embedding. It must be equal
    to the embedding, which the caller checks."""


def match_names(config: ModelConfig, file: TensorFile) -> Match:
    """Find the tensor for each parameter of a decoder, also under GGUF's names.

    Raises:
        WeightsError: a parameter has no tensor, a tensor has no parameter, or shapes differ.
    """
    check_layers(file.path, config, len(file))
    sources: dict[str, str] = {}
    for name in file:
        if name.startswith(TRAINING_PREFIX) or (name in HEADS and file.info(name).tied):
            continue
        parameter = hf_name(name) or name
        if parameter in sources:
            raise WeightsError(
                f"{file.path}: {sources[parameter]} and {name} are both {parameter}; remove one of them"
            )
        sources[parameter] = name
    head_copy = sources.pop(HEAD, None) if config.tie_word_embeddings else None
    _check(file, sources, parameter_shapes(config))
    return Match(sources, head_copy)


def permuted_heads(config: ModelConfig, source: str, parameter: str) -> int | None:
    """Return the number of heads whose rows a tensor has in GGUF's order, or None for transformers' order.

    GGUF converters permute the rows of Llama's q and k projections. Nothing in a file says so but the names.
    """
    # `rope_type` ought to say it, but importers write 0 (adjacent pairs) for transformers' order too.
    if source == parameter or config.family not in PERMUTED:
        return None
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return heads.get(parameter.split(".")[-2])


def _check(file: TensorFile, sources: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    # All problems are in one error. A loader that filled only what it found once lost all biases silently.
    missing = [name for name in shapes if name not in sources]
    unexpected = [source for name, source in sources.items() if name not in shapes]
    wrong = []
    for name, expected in shapes.items():
        shape = file.info(sources[name]).shape if name in sources else expected
        # Some writers store vectors as matrices with one row.
        if shape != expected and not (len(expected) == 1 and shape == (1, *expected)):
            wrong.append(f"{sources[name]} has shape {list(shape)}, expected {list(expected)}")
    problems = []
    if missing:
        problems.append(f"missing tensors ({len(missing)}): {listed(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors ({len(unexpected)}): {listed(unexpected)}")
    if wrong:
        problems.append(listed(wrong))
    if problems:
        raise WeightsError(
            f"{file.path}: the tensors do not match the model in the metadata: {'; '.join(problems)}"
        )


def listed(names: Sequence[str]) -> str:
    """Join names for an error, and count those beyond the first few."""
    shown = ", ".join(names[:_MAX_LISTED])
    if len(names) > _MAX_LISTED:
        return f"{shown} and {len(names) - _MAX_LISTED} more"
    return shown

"""Which tensor of a file belongs to which parameter of a decoder, from names and shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.errors import WeightsError
from apr.gguf.names import PERMUTED, hf_name
from apr.model.families import FAMILIES
from apr.model.names import EMBEDDING, HEAD, HEADS, TRAINING_PREFIX, check_layers, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apr.container.tensor_file import TensorFile
    from apr.model.config import ModelConfig

# Names that an error lists.
_MAX_LISTED = 8
# What wrappers put before the names of a model's tensors, and what to do about it.
_PREFIXES = {
    "_orig_mod.": "torch.compile adds; save the state dict of the model that was compiled (model._orig_mod)",
    "module.": "DistributedDataParallel adds; save the state dict of the model inside (model.module)",
    "_fsdp_wrapped_module.": "FSDP adds; save a full state dict",
    "base_model.model.": "PEFT adds; merge the adapter first (merge_and_unload) and save the result",
    "model.language_model.": "multimodal models add; apr supports only their text part",
    "language_model.": "multimodal models add; apr supports only their text part",
}


@dataclass(frozen=True)
class Match:
    """The tensors of a file that are the parameters of a decoder."""

    sources: dict[str, str]
    """The name in the file for each parameter, by its name in transformers."""
    head_copy: str | None
    """The name of a head that the file stores beside the embedding, although the metadata tie the two. They
    must be equal, which the caller checks."""


def has_head(file: TensorFile) -> bool:
    """Whether the file has an output projection that is not empty."""
    return any(name in file and not file.info(name).tied for name in HEADS)


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
                f"{file.path}: {sources[parameter]} and {name} are both {parameter}; remove one of them",
                path=file.path,
            )
        sources[parameter] = name
    head_copy = None
    if config.tie_word_embeddings and HEAD in sources:
        head = sources.pop(HEAD)
        # safetensors' `save_model` leaves a tied pair under the name that sorts first, that of the head.
        head_copy = head if sources.setdefault(EMBEDDING, head) != head else None
    shapes = {name: file.info(source).shape for name, source in sources.items()}
    problem = mismatch(config, shapes, sources)
    if problem is not None:
        raise WeightsError(
            f"{file.path}: the tensors do not match the model in the metadata: {problem}", path=file.path
        )
    return Match(sources, head_copy)


def permuted_heads(config: ModelConfig, source: str, parameter: str) -> int | None:
    """Return the number of heads whose rows a tensor has in GGUF's order, or None for transformers' order.

    GGUF converters permute the rows of q and k projections of some families. Only the names tell.
    """
    # `rope_type` ought to say it, but importers write 0 (adjacent pairs) for transformers' order too.
    if source == parameter or FAMILIES[config.family].gguf not in PERMUTED:
        return None
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return heads.get(parameter.split(".")[-2])


def mismatch(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, str] | None = None
) -> str | None:
    """Return how tensors differ from the parameters of a decoder, or None if they match.

    Args:
        config: the decoder's configuration.
        shapes: the shape of each tensor, by the parameter's name in transformers.
        sources: the names that the tensors have in the file, for the message; by default the same.
    """
    stored = sources or {name: name for name in shapes}
    # All problems are in one message. A loader that filled only what it found once lost all biases silently.
    expected = parameter_shapes(config)
    missing = [name for name in expected if name not in shapes]
    unexpected = [stored[name] for name in shapes if name not in expected]
    wrong = [
        f"{stored[name]} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        # Some writers store vectors as matrices with one row.
        if name in shapes and shapes[name] not in ({shape, (1, *shape)} if len(shape) == 1 else {shape})
    ]
    for prefix, origin in _PREFIXES.items():
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return f"the tensor names start with {prefix!r}, which {origin}"
    problems = []
    if missing:
        problems.append(f"missing tensors ({len(missing)}): {listed(missing)}")
    if missing == [HEAD]:
        problems.append("if the head is the embedding, set tie_word_embeddings to true")
    if unexpected:
        problems.append(f"unexpected tensors ({len(unexpected)}): {listed(unexpected)}")
    if wrong:
        problems.append(listed(wrong))
    return "; ".join(problems) or None


def listed(names: Sequence[str]) -> str:
    """Join names for an error, and count those beyond the first few."""
    shown = ", ".join(names[:_MAX_LISTED])
    if len(names) > _MAX_LISTED:
        return f"{shown} and {len(names) - _MAX_LISTED} more"
    return shown

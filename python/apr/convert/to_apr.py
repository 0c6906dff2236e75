"""Write a model as one `.apr` file, or as several with their index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr.container.metadata import SHARDING
from apr.container.save import TensorSpec
from apr.container.save import write as write_file
from apr.convert.plan import APR_INDEX
from apr.files import write_json
from apr.model.metadata import of_a_later_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.convert.stream import Item


def write(target: Path, metadata: Mapping[str, Any], items: Sequence[Item]) -> None:
    """Write one file, atomically.

    Raises:
        OSError: the file cannot be written; what was there is as it was.
    """
    named = {item.spec.name: item for item in items}

    def values(spec: TensorSpec) -> Iterator[NDArray[Any]]:
        return named[spec.name].stored()

    write_file(target, metadata, [item.spec for item in items], values)


def write_several(directory: Path, metadata: Mapping[str, Any], groups: Sequence[Sequence[Item]]) -> None:
    """Write several files and their index into a directory that is there.

    Args:
        directory: where the files go.
        metadata: of the model; the first file holds all of them.
        groups: the tensors of each file.
    """
    total = sum(item.nbytes for group in groups for item in group)
    sharding = {
        "shard_count": len(groups),
        "total_size": total,
        "pattern": "model-{index:05}-of-{count:05}.apr",
    }
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05}-of-{len(groups):05}.apr"
        of_file = metadata if i == 0 else of_a_later_file(metadata)
        write(directory / name, {**of_file, SHARDING: {**sharding, "shard_index": i}}, group)
        weight_map |= {item.spec.name: name for item in group}
    write_json(directory / APR_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

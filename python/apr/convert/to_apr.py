"""Write a model as one `.apr` file, or as several with their index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr.container.metadata import SHARDING
from apr.container.save import TensorSpec
from apr.container.save import write as write_file
from apr.convert.plan import APR_INDEX
from apr.files import write_json
from apr.model.metadata import for_later_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from apr.convert.stream import TensorStream


def write(path: Path, metadata: Mapping[str, Any], tensors: Sequence[TensorStream]) -> None:
    """Write one file atomically.

    Raises:
        OSError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    by_name = {tensor.spec.name: tensor for tensor in tensors}

    def values(spec: TensorSpec) -> Iterator[NDArray[Any]]:
        return by_name[spec.name].byte_chunks()

    write_file(path, metadata, [tensor.spec for tensor in tensors], values)


def write_several(
    directory: Path, metadata: Mapping[str, Any], shards: Sequence[Sequence[TensorStream]]
) -> None:
    """Write a model as several files and their index.

    Args:
        directory: an existing directory.
        metadata: the model's metadata. The first file gets all of them, the others what describes the model.
        shards: the tensors of each file.

    Raises:
        OSError: a file cannot be written.
    """
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    sharding = {
        "shard_count": len(shards),
        "total_size": total,
        "pattern": "model-{index:05}-of-{count:05}.apr",
    }
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        # Names count from 1, as transformers' do; `shard_index` counts from 0.
        name = f"model-{i + 1:05}-of-{len(shards):05}.apr"
        own = metadata if i == 0 else for_later_shard(metadata)
        write(directory / name, {**own, SHARDING: {**sharding, "shard_index": i}}, shard)
        weight_map |= {tensor.spec.name: name for tensor in shard}
    write_json(directory / APR_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

"""Writing a model's weights alone, in another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.container import torch_dtypes
from apr.container.load import load
from apr.container.save import TensorSpec, bytes_of, write
from apr.container.torch_values import narrowed
from apr.errors import WeightsError
from apr.train.parallel.shard import whole

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from typing_extensions import Buffer

    from apr.model.decoder import Decoder
    from apr.train.checkpoint.metadata import CheckpointMetadata


def take_part_in_export(model: Decoder) -> None:
    """Help another rank to export a model that is divided among them."""
    # In the order in which `write` asks for the tensors.
    for _, parameter in sorted(model.named_parameters()):
        whole(parameter.detach())


def export_weights(path: Path, model: Decoder, metadata: CheckpointMetadata, dtype: torch.dtype) -> None:
    """Write the weights without training state, and read the file back.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        model: the model to export.
        metadata: what all checkpoints of the run have in their metadata.
        dtype: the dtype of every tensor in the file.

    Raises:
        OSError: the file cannot be written.
        AprError: what was written does not verify.
        WeightsError: a weight is beyond the range of `dtype`.
    """
    parameters = dict(model.named_parameters())
    dtype_name = torch_dtypes.NAMES[dtype]
    specs = [TensorSpec(name, dtype_name, tuple(p.shape)) for name, p in parameters.items()]
    # Converted one at a time: no second copy of all weights is held.

    def values(spec: TensorSpec) -> Buffer:
        result, overflow = narrowed(whole(parameters[spec.name].detach()), dtype)
        if overflow is not None and overflow:
            raise WeightsError(
                f"{path}: {spec.name}: a value is beyond the range of {dtype_name}",
                path=path,
                tensor=spec.name,
            )
        return bytes_of(result)

    write(path, metadata.to_dict(), specs, values)
    # A disk may return other bits than it was given; the run reports the file as verified.
    load(path, verify="full").close()

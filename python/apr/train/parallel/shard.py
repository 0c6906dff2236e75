"""`--shard-model`: each rank keeps a part of every parameter (FSDP2), for models that do not fit on one GPU.

Rows are divided, as torch's `fully_shard` does it. A layer's parameters are put together when it computes, in
bfloat16 if that is the precision, and its gradients are added up in float32 and divided again. What is whole
elsewhere, such as a tensor of a file, passes through here one tensor at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder
    from apr.train.config import Precision


def sharded_model(config: ModelConfig, device: torch.device, ranks: int, precision: Precision) -> Decoder:
    """Return a model without values, of which this rank has its part. All ranks call it."""
    # Imported here: they take a second, which other runs need not spend.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    from apr.model.decoder import Decoder

    model = Decoder.empty(config, "meta", torch.float32)
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            # Among a layer's inputs are the tables of rotary positions, which stay float32.
            cast_forward_inputs=False,
        )
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # Embedding, last norm and head. They stay whole between the forward and the backward pass, where the loss
    # uses the head; a tied one is the embedding's own parameter.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, as everywhere here: a gradient is already divided by the tokens of all ranks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=device)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has only a part of the model."""
    return hasattr(model, "reshard")


def reshard(model: nn.Module) -> None:
    """Divide a model again of which an evaluation has left a part whole; do nothing with any other model."""
    if is_sharded(model):
        parts: Any = model
        parts.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that is divided among the ranks, which all call it; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor that is divided among the ranks, or any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def assign(target: Tensor, values: Tensor) -> None:
    """Copy values into a tensor, or this rank's rows of them if it is divided."""
    if not hasattr(target, "to_local"):
        target.copy_(values)
        return
    rows, mesh = target.to_local(), target.device_mesh  # type: ignore[attr-defined]
    first = mesh.get_local_rank() * -(-len(target) // mesh.size())
    rows.copy_(values[first : first + len(rows)])


def whole_parameters(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter to be written to; of one that is divided, this rank keeps its rows of what is."""
    for name, parameter in model.named_parameters():
        if not is_sharded(model):
            yield name, parameter
            continue
        with torch.no_grad():
            values = torch.empty(parameter.shape, device=parameter.device, dtype=parameter.dtype)
            yield name, values
            assign(parameter, values)

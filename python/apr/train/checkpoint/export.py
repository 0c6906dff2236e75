"""A model's weights alone, in another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr.container import torch_dtypes
from apr.container.load import load
from apr.container.save import TensorSpec, bytes_of, write

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from apr.model.decoder import Decoder


def export_weights(path: Path, model: Decoder, facts: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the weights alone in another dtype, and read them back.

    Args:
        path: replaced only once the new file is whole.
        model: what to export.
        facts: metadata.
        dtype: of every tensor in the file.

    Raises:
        OSError: it cannot be written.
        AprError: what was written does not verify.
    """
    parameters = dict(model.named_parameters())
    name_of = torch_dtypes.NAMES[dtype]
    specs = [TensorSpec(name, name_of, tuple(p.shape)) for name, p in parameters.items()]
    write(path, facts, specs, lambda spec: bytes_of(parameters[spec.name].detach().to(dtype)))
    load(path, verify="full").close()

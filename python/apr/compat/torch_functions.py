"""safetensors' functions for torch over `.apr` files: change the import, keep the script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from apr.compat.from_bytes import opened
from apr.compat.safe_open import safe_open
from apr.compat.shared_memory import duplicates, overlapping
from apr.compat.text_metadata import texts
from apr.container.save import save as _save
from apr.container.save import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

__all__ = ["load", "load_file", "load_model", "save", "save_file", "save_model"]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as `.apr`, atomically and with checksums.

    As in safetensors, tensors must be contiguous and share no memory; `apr.save` takes them as they are,
    and metadata of any JSON.

    Args:
        tensors: names to dense tensors on any device.
        filename: the file.
        metadata: text to text.

    Raises:
        ValueError: no mapping, no tensor, or one that is sparse or not contiguous.
        RuntimeError: tensors that share memory.
        TypeError: a dtype that the format lacks; a name or metadata other than text.
        AprError: a name or shape that the format cannot hold.
        OSError: the file cannot be written; what was there is as it was.
    """
    _check(tensors)
    _save(tensors, filename, texts(metadata))


def load_file(
    filename: str | PathLike[str],
    device: str | int = "cpu",
    *,
    backend: Literal["mmap", "pread"] = "mmap",
) -> dict[str, torch.Tensor]:
    """Every tensor of a file; quantized ones as float32.

    Args:
        filename: the file.
        device: where they go: "cpu", "cuda:1", or the number of a CUDA device.
        backend: on the CPU, "mmap" gives tensors on the mapped pages (copy-on-write), "pread" in memory of
            their own.

    Raises:
        AprError: the file is damaged, cut off, or of a kind that is not read.
        ValueError: a device (DeviceError) or backend that is not there.
        OSError: as `open` would.
    """
    with safe_open(filename, "pt", device, backend=backend) as file:
        tensors: dict[str, torch.Tensor] = file.get_tensors()
        return tensors


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes that `save_file` would write; arguments and errors as there."""
    _check(tensors)
    return to_bytes(tensors, texts(metadata))


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Every tensor of a file that is given as its bytes, on the CPU.

    Raises:
        AprError: as `load_file`.
    """
    with opened(data) as file:
        return dict(file)


def save_model(
    model: torch.nn.Module,
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,  # noqa: FBT001, FBT002 (safetensors' signature)
) -> None:
    """Write a model's state; of tensors that share memory, the one that covers it all.

    As in safetensors, the metadata say of each name that was left out which one stands for it.

    Args:
        model: any module.
        filename: the file.
        metadata: text to text.
        force_contiguous: write tensors of other layouts as contiguous ones instead of refusing them.

    Raises:
        RuntimeError: tensors that share memory of which none covers it all.
        ValueError: a tensor that is not contiguous, without `force_contiguous`.
        Others: as `save_file`.
    """
    state = model.state_dict()
    said = dict(texts(metadata))
    for kept, left_out in duplicates(state).items():
        for name in left_out:
            said.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, filename, said)


def load_model(
    model: torch.nn.Module,
    filename: str | PathLike[str],
    strict: bool = True,  # noqa: FBT001, FBT002 (safetensors' signature)
    device: str | int = "cpu",
    *,
    backend: Literal["mmap", "pread"] = "mmap",
) -> tuple[set[str], list[str]]:
    """Load a file into a model, whose parameters stay where they are.

    A name of the model that shares its memory with another is not missing when the file has the other;
    when it has both with the same bits (a tied head), none is unexpected.

    Args:
        model: any module.
        filename: the file.
        strict: raise where names are missing or unexpected.
        device: where the file is read to, as in `load_file`.
        backend: as in `load_file`.

    Returns:
        (missing, unexpected): names of the model that got no values, and names of the file that were not
        used.

    Raises:
        RuntimeError: missing or unexpected names, where `strict`; another shape.
        Others: as `load_file`.
    """
    state = load_file(filename, device, backend=backend)
    shared = duplicates(model.state_dict(), preferred=state.keys())
    for kept, others in shared.items():
        for name in others:
            if name in state and kept in state and _same_bits(state[name], state[kept]):
                del state[name]
    found = model.load_state_dict(state, strict=False)
    aliases = {name for others in shared.values() for name in others}
    missing = set(found.missing_keys) - aliases
    unexpected = [*found.unexpected_keys, *sorted(aliases & state.keys())]
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in sorted(names))
                lines.append(f"    {what} key(s) in state_dict: {listed}")
        raise RuntimeError("\n".join(lines))
    return missing, unexpected


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """What safetensors refuses is refused here too, with its classes of errors."""
    if not isinstance(tensors, dict):
        raise ValueError(  # noqa: TRY004 (safetensors' class)
            f"expected a dict of [str, torch.Tensor] but received {type(tensors)}"
        )
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(  # noqa: TRY004
                f"key {name!r} is invalid, expected torch.Tensor but received {type(value)}"
            )
        if value.layout != torch.strided:
            raise ValueError(f"tensor {name!r} is sparse: make it dense first, with .to_dense()")
    shared = overlapping(tensors)
    if shared:
        names = "; ".join(", ".join(group) for group in shared)
        raise RuntimeError(
            f"some tensors share memory: {names}; save_model leaves duplicates out, apr.save writes them all"
        )
    for name, value in tensors.items():
        if not value.is_contiguous():
            raise ValueError(f"tensor {name!r} is not contiguous: call .contiguous(), or use apr.save")

"""The functions of `safetensors.torch`, over `.apr` files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from apr.compat.from_bytes import opened_bytes
from apr.compat.safe_open import safe_open
from apr.compat.shared_memory import duplicates, overlapping
from apr.compat.text_metadata import checked_texts
from apr.container.save import save as save_apr
from apr.container.save import spec_of, to_bytes
from apr.container.torch_values import plain
from apr.path_arguments import as_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to an `.apr` file, atomically and with checksums.

    As in safetensors, tensors must be contiguous and must not share memory. `apr.save` accepts any layout,
    and metadata of any JSON type.

    Args:
        tensors: dense tensors on any device, by name.
        filename: the file; an existing one is replaced only once the new one is complete.
        metadata: strings by name.

    Raises:
        ValueError: `tensors` is not a dict of tensors, or a tensor is sparse or not contiguous.
        RuntimeError: tensors share memory.
        TypeError: a dtype that the format does not have; a name or metadata other than strings.
        AprError: a name or shape that the format does not allow.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    as_path(filename, "filename", "save_file(tensors, filename)", is_written=True)
    _check(tensors)
    save_apr(tensors, filename, checked_texts(metadata))


def load_file(
    filename: str | PathLike[str],
    device: str | int = "cpu",
    *,
    backend: Literal["mmap", "pread"] = "mmap",
) -> dict[str, torch.Tensor]:
    """Return every tensor of a file. Quantized tensors are dequantized to float32.

    Args:
        filename: the file.
        device: the device of the tensors: "cpu", "cuda:1", or the number of a CUDA device.
        backend: on the CPU, "mmap" returns tensors that use the mapped pages of the file (copy-on-write),
            "pread" reads them into new memory.

    Raises:
        AprError: the file is damaged, cut short, or of an unsupported kind.
        ValueError: an unknown device (`DeviceError`) or backend.
        OSError: the file cannot be opened or read.
    """
    with safe_open(filename, "pt", device, backend=backend) as file:
        tensors: dict[str, torch.Tensor] = file.get_tensors()
        return tensors


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of the file that `save_file` would write.

    Args:
        tensors: dense tensors on any device, by name.
        metadata: strings by name.

    Raises:
        ValueError: `tensors` is not a dict of tensors, or a tensor is sparse or not contiguous.
        RuntimeError: tensors share memory.
        TypeError: a dtype that the format does not have; a name or metadata other than strings.
        AprError: a name or shape that the format does not allow.
    """
    _check(tensors)
    return to_bytes(tensors, checked_texts(metadata))


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Return every tensor of a file that is given as its bytes, on the CPU.

    Raises:
        AprError: the bytes are damaged, cut short, or of an unsupported kind.
    """
    with opened_bytes(data) as file:
        return dict(file)


def save_model(
    model: torch.nn.Module,
    filename: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,  # noqa: FBT001, FBT002 (safetensors' signature)
) -> None:
    """Write the state of a model. Tensors that share memory are written once.

    As in safetensors, the tensor that covers all of the shared memory is written, and the metadata map each
    name that was left out to its name.

    Args:
        model: any module.
        filename: the file; an existing one is replaced only once the new one is complete.
        metadata: strings by name.
        force_contiguous: write tensors of other layouts as contiguous ones instead of refusing them.

    Raises:
        RuntimeError: tensors share memory and none of them covers all of it.
        ValueError: a tensor is not contiguous, without `force_contiguous`.
        TypeError: a dtype that the format does not have; metadata other than strings.
        AprError: a name or shape that the format does not allow.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    as_path(filename, "filename", "save_model(model, filename)", is_written=True)
    _check_model(model, "save_file")
    state = {name: _plain(name, value) for name, value in model.state_dict().items()}
    texts = dict(checked_texts(metadata))
    for kept, left_out in duplicates(state).items():
        for name in left_out:
            # As in safetensors, the caller's own text under this key wins.
            texts.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, filename, texts)


def load_model(
    model: torch.nn.Module,
    filename: str | PathLike[str],
    strict: bool = True,  # noqa: FBT001, FBT002 (safetensors' signature)
    device: str | int = "cpu",
    *,
    backend: Literal["mmap", "pread"] = "mmap",
) -> tuple[set[str], list[str]]:
    """Load a file into a model, whose parameters stay on their device.

    A name of the model that shares memory with another is not missing if the file has the other. If the file
    has both with the same bits (a tied head), neither is unexpected.

    Args:
        model: any module.
        filename: the file.
        strict: raise if names are missing or unexpected.
        device: the device to which the file is read, as in `load_file`.
        backend: "mmap" or "pread", as in `load_file`.

    Returns:
        (missing, unexpected): names of the model that got no values, and names of the file that were not
        used.

    Raises:
        RuntimeError: missing or unexpected names, if `strict`; tensors of another shape.
        AprError: the file is damaged, cut short, or of an unsupported kind.
        ValueError: an unknown device (`DeviceError`) or backend.
        OSError: the file cannot be opened or read.
    """
    as_path(filename, "filename", "load_model(model, filename)")
    _check_model(model, "load_file")
    state = load_file(filename, device, backend=backend)
    shared = duplicates(model.state_dict(), preferred=state.keys())
    for kept, others in shared.items():
        for name in others:
            if name in state and kept in state and _have_same_bits(state[name], state[kept]):
                del state[name]
    # Never strict here: torch does not know that names which share memory stand for one another.
    result = model.load_state_dict(state, strict=False)
    aliases = {name for others in shared.values() for name in others}
    missing = set(result.missing_keys) - aliases
    unexpected = [*result.unexpected_keys, *sorted(aliases & state.keys())]
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for kind, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in sorted(names))
                lines.append(f"    {kind} key(s) in state_dict: {listed}")
        raise RuntimeError("\n".join(lines))
    return missing, unexpected


def _check_model(model: object, for_tensors: str) -> None:
    # By what is used of it: wrappers of modules are models too.
    if not hasattr(model, "state_dict"):
        raise TypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}; "
            f"use {for_tensors} for tensors by name"
        )


def _have_same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # Compared as bytes: a NaN is not equal to itself.
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what safetensors refuses, with the same classes of errors."""
    if not isinstance(tensors, dict):
        raise ValueError(  # noqa: TRY004 (safetensors' class)
            f"expected a dict of tensors by name, not {type(tensors).__name__}"
        )
    state = {name: _plain(name, value) for name, value in tensors.items()}
    for name, value in state.items():
        spec_of(name, value)
    # safetensors' order: shared memory is reported before a layout that is not contiguous.
    shared = overlapping(state)
    if shared:
        names = "; ".join(", ".join(group) for group in shared)
        raise RuntimeError(
            f"tensors share memory: {names}; use save_model to store them once, or apr.save to store each"
        )
    for name, value in state.items():
        if not value.is_contiguous():
            raise ValueError(f"tensor {name!r} is not contiguous; call .contiguous() first, or use apr.save")


def _plain(name: str, value: object) -> torch.Tensor:
    """Return a value of a state dict as one of torch's own tensors, in the same memory."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(  # noqa: TRY004 (safetensors' class)
            f"tensor {name!r} must be a torch.Tensor, not {type(value).__name__}"
        )
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 (as in `plain`)
        if value.layout != torch.strided and not value.is_nested:
            raise ValueError(f"tensor {name!r} has the layout {value.layout}; call .to_dense() first")
    return plain(value, name)

"""What a caller passes as a path, checked before it is used."""

from __future__ import annotations

import os
import sys

# The ends of names by which other programs know other formats.
_FOREIGN = {
    ".safetensors": "safetensors",
    ".gguf": "GGUF",
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".bin": "PyTorch",
    ".ckpt": "PyTorch",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".onnx": "ONNX",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".msgpack": "Flax",
    # This package is one of those programs.
    ".index.json": "the index of several files",
}


def as_path(path: object, name: str = "path", order: str = "", *, is_written: bool = False) -> str:
    """Return a path as text.

    Args:
        path: what the caller passed.
        name: the name of the argument.
        order: the call with its arguments in order, where something else could be meant.
        is_written: whether the file is written, and not read.

    Raises:
        TypeError: neither a str nor a PathLike of one.
        ValueError: a text that is not the name of any file.
    """
    given = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(given, str):
        try:
            os.fsencode(given)
        except UnicodeEncodeError:
            raise ValueError(f"{name} {given!r}: a lone surrogate cannot be in the name of a file") from None
        return given
    if is_written:
        contents = "; to get the contents of a file, use apr.torch.save or apr.numpy.save"
    else:
        contents = ", or the contents of a file to apr.torch.load or apr.numpy.load"
    if isinstance(given, (bytes, bytearray, memoryview)):
        # The bytes may be those of a file, of any length.
        hint = f"; pass os.fsdecode(path){contents}"
    elif hasattr(given, "read"):
        hint = f"; pass the path of the file{contents}"
    else:
        hint = f"; the order is {order}" if order and given is not None else ""
    raise TypeError(f"{name} must be a str or a PathLike, not {type(given).__name__}{hint}")


def looks_like_path(value: object) -> bool:
    """Whether a value is what a path argument accepts."""
    return isinstance(value, (str, bytes, os.PathLike))


def foreign_name(path: str) -> str | None:
    """Return what is wrong with the name of an .apr file to write; None unless it is another format's."""
    lower = path.lower()
    end = next((end for end in _FOREIGN if lower.endswith(end)), None)
    if end is None:
        return None
    kind = _FOREIGN[end]
    other = f"to get {kind}, write it with {kind} itself"
    if end in {".safetensors", ".gguf", ".index.json"}:
        other = f"to get {kind}, convert the .apr file with apr convert"
    return (
        f"{path}: the contents are .apr, which programs that expect {kind} under this name cannot read; use "
        f"a name that ends in .apr; {other}"
    )


def warn_of_foreign_name(path: str) -> None:
    """Warn the caller outside this package if a file to write has the name of another format.

    A warning, not an error: after hours of training, the weights must be saved.
    """
    problem = foreign_name(path)
    if problem is not None:
        import warnings

        # The line that called this package, however deep inside it we are.
        package = os.path.dirname(__file__) + os.sep  # noqa: PTH120 (a Path costs more)
        frame, level = sys._getframe(), 1  # noqa: SLF001 (the way to look at callers)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
            frame, level = frame.f_back, level + 1
        warnings.warn(problem, stacklevel=level)

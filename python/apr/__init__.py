"""The Python home of `.apr` model files: open, check and write them, and train from them."""

from __future__ import annotations

from apr.errors import (
    AprError,
    ChecksumError,
    DecryptionError,
    FormatError,
    SignatureError,
    TruncatedError,
    UnsupportedError,
)

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from apr._core import __version__
    from apr.container.diff import Diff, diff
    from apr.container.file import AprFile, Header, TensorInfo, load
    from apr.container.inspect import inspect
    from apr.container.legacy.v1 import V1File, V1Flags, V1Header, open_v1
    from apr.container.quantize import quantize
    from apr.container.quantized import Quantized
    from apr.container.safe_open import safe_open
    from apr.container.save import save
    from apr.container.stamp import stamp
    from apr.container.verify import Check, Report, verify
    from apr.container.writer import Writer

__all__ = [
    "AprError",
    "AprFile",
    "Check",
    "ChecksumError",
    "DecryptionError",
    "Diff",
    "FormatError",
    "Header",
    "Quantized",
    "Report",
    "SignatureError",
    "TensorInfo",
    "TruncatedError",
    "UnsupportedError",
    "V1File",
    "V1Flags",
    "V1Header",
    "Writer",
    "__version__",
    "diff",
    "inspect",
    "load",
    "open_v1",
    "quantize",
    "safe_open",
    "save",
    "stamp",
    "verify",
]

# Imported on first use: `import apr` loads no numpy, no torch and nothing that a name here does not need.
_HOME = {
    "AprFile": "apr.container.file",
    "Check": "apr.container.verify",
    "Diff": "apr.container.diff",
    "Header": "apr.container.file",
    "Quantized": "apr.container.quantized",
    "Report": "apr.container.verify",
    "TensorInfo": "apr.container.file",
    "V1File": "apr.container.legacy.v1",
    "V1Flags": "apr.container.legacy.v1",
    "V1Header": "apr.container.legacy.v1",
    "Writer": "apr.container.writer",
    "__version__": "apr._core",
    "diff": "apr.container.diff",
    "inspect": "apr.container.inspect",
    "load": "apr.container.file",
    "open_v1": "apr.container.legacy.v1",
    "safe_open": "apr.container.safe_open",
    "quantize": "apr.container.quantize",
    "save": "apr.container.save",
    "stamp": "apr.container.stamp",
    "verify": "apr.container.verify",
}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'apr' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

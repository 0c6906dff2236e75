"""What can go wrong, as types. Every message is one line: what, where, what to do."""

from __future__ import annotations

from os import PathLike, fspath

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Sequence

# Exit codes of the commands, as the ecosystem's own tools number them.
EXIT_UNFORESEEN, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_NOT_VALID = 1, 2, 3, 4
EXIT_REFUSED, EXIT_WEIGHTS, EXIT_IO, EXIT_UNAVAILABLE = 5, 6, 7, 9
# What to install for a module that is not there; everything else belongs to the train extra.
_EXTRA = {"transformers": "hf", "safetensors": "hf"}
# Characters of a message, and of its start and end where it is longer: a hostile file may hold names of a
# hundred megabytes.
_LONGEST, _START, _END = 4096, 3000, 500


class AprError(ValueError):
    """A file is not what it says it is, or not what was asked for.

    Attributes:
        path: the file, or None where there is none.
        tensor: the tensor concerned, or None.
        offset: the byte concerned, counted from the start of the file, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        if len(message) > _LONGEST:
            message = f"{message[:_START]} … {message[-_END:]}"
        super().__init__(message)
        self.path = None if path is None else fspath(path)
        self.tensor = tensor
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.path, self.tensor, self.offset)


def _rebuild(
    kind: type[AprError], message: str, path: str | None, tensor: str | None, offset: int | None
) -> AprError:
    return kind(message, path=path, tensor=tensor, offset=offset)


class FormatError(AprError):
    """The structure of the file lies."""


class ChecksumError(AprError):
    """Stored and computed checksums differ."""


class TruncatedError(AprError):
    """The file ends before its declared contents do."""


class UnsupportedError(AprError):
    """An honest file of a kind that is not read; the message says which kind."""


class DecryptionError(AprError):
    """The file is encrypted and the key is missing or wrong."""


class SignatureError(AprError):
    """The signature is missing, wrong, or by a key that is not trusted."""


class RefusedError(Exception):
    """A check, a preflight or a gate said no. `exit_code` is what a command ends with."""

    exit_code = EXIT_REFUSED


class UsageError(RefusedError):
    """The request contradicts itself."""

    exit_code = EXIT_USAGE


class WeightsError(RefusedError):
    """The weights of a file do not fit the model."""

    exit_code = EXIT_WEIGHTS


class UnavailableError(RefusedError):
    """A feature or a device that is not there."""

    exit_code = EXIT_UNAVAILABLE


class DeviceError(UnavailableError, ValueError):
    """A device that torch does not know, or that is not in this machine."""


class PreflightError(RefusedError):
    """Several things that each keep a run from starting; a line for each.

    Attributes:
        problems: the errors, in the order in which they were found; the first gives the exit code.
    """

    def __init__(self, problems: Sequence[Exception]) -> None:
        super().__init__("\n".join(message(problem) for problem in problems))
        self.problems = tuple(problems)
        self.exit_code = exit_code(problems[0])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error, as the ecosystem's own tools number them."""
    if isinstance(error, RefusedError):
        return error.exit_code
    if isinstance(error, AprError):
        return EXIT_NOT_VALID
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return EXIT_NOT_FOUND
    if isinstance(error, OSError):
        return EXIT_IO
    if isinstance(error, ModuleNotFoundError) and not (error.name or "apr").startswith("apr"):
        return EXIT_UNAVAILABLE
    return EXIT_UNFORESEEN


def messages(error: BaseException) -> list[str]:
    """The error as lines for a person, one for each thing that is wrong."""
    return [message(problem) for problem in getattr(error, "problems", (error,))]


def message(error: BaseException) -> str:
    """The error as one line for a person; nothing in it acts on a terminal."""
    line = _line(error)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = _EXTRA.get(error.name.partition(".")[0], "train")
        return (
            f"{error.name} is not installed: pip install 'apr[{extra}]' "
            f"(in a checkout: uv pip install '.[{extra}]')"
        )
    return " ".join(str(error).split())

"""Error classes, exit codes, and how an error becomes one line for a person."""

from __future__ import annotations

import os
from contextlib import contextmanager
from os import PathLike, fspath

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Exit codes of the commands. Scripts of the ecosystem's own tools test for these numbers.
EXIT_UNFORESEEN, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_NOT_VALID = 1, 2, 3, 4
EXIT_REFUSED, EXIT_WEIGHTS, EXIT_IO, EXIT_UNAVAILABLE = 5, 6, 7, 9
# The extra that installs a module. Each extra is as small as its task allows: converting a GGUF file must not
# download torch.
_EXTRA = {
    "gguf": "convert",
    "safetensors": "convert",
    "pyarrow": "data",
    "tokenizers": "data",
    "jinja2": "train",
    "matplotlib": "train",
    "pynvml": "train",
    "torch": "train",
    "transformers": "hf",
    "tensorboard": "tensorboard",
    "hypothesis": "testing",
}
# A longer message keeps its start and its end: a hostile file can contain a name of a hundred megabytes.
_MAX_MESSAGE, _KEPT_START, _KEPT_END = 4096, 3000, 500


class AprError(ValueError):
    """A model file is damaged, unsupported, or does not fit the request.

    Attributes:
        path: path of the file or directory as a str, or None if the error is not about one.
        tensor: name of the tensor, or None if the error is not about one tensor.
        offset: byte of the file at which the problem is, or None if it has no single place.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[:_KEPT_START]} … {message[-_KEPT_END:]}"
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
    """The structure of the file is invalid."""


class ChecksumError(AprError):
    """A stored checksum does not match the bytes that it covers."""


class TruncatedError(AprError):
    """The file ends before its declared contents do: an incomplete copy or download."""


class UnsupportedError(AprError):
    """The file is valid but of a kind that `apr` does not read; the message names the kind."""


class DecryptionError(AprError):
    """The file is encrypted and the key is missing or wrong, or a key was given for a plain file."""


class SignatureError(AprError):
    """The signature is missing or wrong, or its key is not the trusted one."""


class RefusedError(AprError):
    """A check, a preflight or a gate failed. A command exits with `exit_code`."""

    exit_code = EXIT_REFUSED


class UsageError(RefusedError):
    """The arguments contradict each other."""

    exit_code = EXIT_USAGE


class WeightsError(RefusedError):
    """The weights of a file do not fit the model."""

    exit_code = EXIT_WEIGHTS


class UnavailableError(RefusedError):
    """A feature or a device is not available."""

    exit_code = EXIT_UNAVAILABLE


class DeviceError(UnavailableError):
    """A device is unknown to torch or not present in this machine."""


class PreflightError(RefusedError):
    """One or more problems keep a run from starting. The message has one line for each.

    Attributes:
        problems: the errors in the order of the checks. The first one decides the exit code and `path`.
    """

    def __init__(self, problems: Sequence[Exception]) -> None:
        first = problems[0]
        path = first.filename if isinstance(first, OSError) else getattr(first, "path", None)
        super().__init__("\n".join(message(problem) for problem in problems), path=path)
        self.problems = tuple(problems)
        self.exit_code = exit_code(first)

    def __reduce__(self) -> tuple[object, ...]:
        # pickle would call the class with the message, but it takes the errors.
        return type(self), (self.problems,)


class OptionsError(PreflightError, UsageError):
    """Options are missing, unknown or out of range; a line for each."""


@contextmanager
def about(path: str | PathLike[str]) -> Iterator[None]:
    """Make a refusal name a file where it names none: its `path`, and the start of its message.

    What checks a model's metadata or its prompt does not know which file they are from.
    """
    try:
        yield
    except RefusedError as error:
        if error.path is not None or isinstance(error, PreflightError):
            raise
        raise type(error)(f"{fspath(path)}: {error}", path=path, tensor=error.tensor) from None


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that fails with this error."""
    if isinstance(error, RefusedError):
        return error.exit_code
    if isinstance(error, AprError):
        return EXIT_NOT_VALID
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return EXIT_NOT_FOUND
    if isinstance(error, OSError):
        return EXIT_IO
    # A missing module of apr itself is a defect.
    if isinstance(error, ModuleNotFoundError) and not (error.name or "apr").startswith("apr"):
        return EXIT_UNAVAILABLE
    return EXIT_UNFORESEEN


@contextmanager
def named_extras() -> Iterator[None]:
    """Make the error for a module that is not installed name the extra and the command that install it.

    Around imports of optional modules, and as a decorator of functions that make them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ModuleNotFoundError(_line(error), name=error.name) from None


def messages(error: BaseException) -> list[str]:
    """Return the error as lines for a person, one for each problem."""
    return [message(problem) for problem in getattr(error, "problems", (error,))]


def message(error: BaseException) -> str:
    """Return the error as one line for a person, control characters escaped."""
    line = _line(error)
    # Names from a hostile file must not move the cursor or color the terminal.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _hint(error: OSError) -> str:
    """Return what the file of an error of the operating system is, if it is of another kind than expected."""
    from apr.recognize import hint_if_missing, recognized

    path = error.filename
    # With another text the error says what is wrong already.
    if not isinstance(path, str) or error.strerror != os.strerror(error.errno or 0):
        return ""
    if isinstance(error, FileNotFoundError):
        hint = hint_if_missing(path)
    elif isinstance(error, (NotADirectoryError, IsADirectoryError)):
        # A path below a file is nothing, whatever its name.
        what = recognized(path) if os.path.exists(path) else ""  # noqa: PTH110 (pathlib takes 8 ms)
        hint = f"it is {what}" if what else ""
    else:
        hint = ""
    return f"; {hint}" if hint else ""


def _line(error: BaseException) -> str:
    # Python's own text is "[Errno 2] No such file or directory: 'x'".
    if isinstance(error, OSError) and error.strerror is not None:
        if error.filename is None:
            return error.strerror
        hint = _hint(error)
        return f"{error.filename}: {error.strerror}{hint}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        module = error.name.partition(".")[0]
        if module not in _EXTRA:
            return f"{module} is not installed; run pip install {module}"
        extra = _EXTRA[module]
        return (
            f"{module} is not installed; run pip install 'apr[{extra}]' "
            f"(in a checkout: uv pip install '.[{extra}]')"
        )
    return " ".join(str(error).split())

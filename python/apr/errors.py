"""What can go wrong, as types. Every message is one line: what, where, what to do."""

from __future__ import annotations

from os import PathLike, fspath


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

    exit_code = 5


class UsageError(RefusedError):
    """The request contradicts itself."""

    exit_code = 2


class WeightsError(RefusedError):
    """The weights of a file do not fit the model."""

    exit_code = 6


class UnavailableError(RefusedError):
    """A feature or a device that is not there."""

    exit_code = 9

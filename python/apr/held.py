"""A directory held by the one process that writes to it."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress

from apr.errors import RefusedError

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def held(directory: str | os.PathLike[str], by: str, otherwise: str) -> Iterator[None]:
    """Hold a directory against everybody else who asks to.

    The kernel lets go of it when the process ends, however it ends.

    Args:
        directory: it must be there.
        by: who may hold it, as the message names them.
        otherwise: what to do where it is held; ends the message.

    Raises:
        RefusedError: somebody holds it.
        FileNotFoundError, NotADirectoryError: no such directory.
    """
    descriptor = _locked(directory, by, otherwise)
    try:
        yield
    finally:
        # A process forked meanwhile has the descriptor too, and would hold it for as long as it lives.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(directory: str | os.PathLike[str], by: str, otherwise: str) -> int:
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a file system without locks: nothing to hold it by
                _lock(descriptor, f"{os.fspath(directory)}: {by} is writing here: {otherwise}")
            # Whoever held it may have moved it away or removed it meanwhile.
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):  # noqa: PTH116 (a str too)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, refusal: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(refusal) from None


@contextmanager
def claimed(directory: Path, by: str, otherwise: str) -> Iterator[None]:
    """Hold a directory, as `held`; it is made if it is not there.

    Of directories that were made, those that are still empty are removed again when an error passes through.

    Raises:
        RefusedError: somebody holds it.
        NotADirectoryError: something else has its name.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(20, "not a directory", str(directory))
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory, by, otherwise):
        try:
            yield
        except BaseException:
            for path in made:
                try:
                    path.rmdir()
                except OSError:
                    break
            raise

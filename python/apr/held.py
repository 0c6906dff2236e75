"""A directory that one process at a time may write to."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress

from apr.errors import RefusedError

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def held(directory: str | os.PathLike[str], holder: str, advice: str) -> Iterator[None]:
    """Lock a directory while the block runs.

    The kernel releases the lock when the process ends, however it ends, so no lock file is left behind.

    Args:
        directory: an existing directory.
        holder: who may hold it, for the message ("another run").
        advice: what to do if it is held; the end of the message.

    Raises:
        RefusedError: another process, or another thread, holds the directory.
        FileNotFoundError: there is no such directory.
        NotADirectoryError: the path is not a directory.
    """
    descriptor = _lock(directory, f"{os.fspath(directory)}: {holder} is writing to this directory; {advice}")
    try:
        yield
    finally:
        # Closing would not do: a process forked meanwhile has a copy of the descriptor, and with it the lock.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def is_held(directory: str | os.PathLike[str]) -> bool:
    """Return whether a process, or another thread of this one, holds a directory just now.

    Raises:
        FileNotFoundError: there is no such directory.
        NotADirectoryError: the path is not a directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A shared lock, and for no longer than this: several may look at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _lock(directory: str | os.PathLike[str], refusal: str) -> int:
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                # flock belongs to this descriptor. The locks of lockf belong to the process: a second thread
                # would get one too, and closing any descriptor of the directory would release it.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefusedError(refusal) from None
            except OSError:
                pass  # some network file systems have no locks; refusing to work there would help nobody
            # The previous holder may have moved or removed the directory between `open` and `flock`. The lock
            # is then on a directory that nobody will look at.
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):  # noqa: PTH116 (a str too)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def claimed(directory: Path, holder: str, advice: str) -> Iterator[None]:
    """Create a directory if it does not exist, and lock it as `held` does.

    If an error leaves the block, directories that were created here and are still empty are removed.

    Raises:
        RefusedError: another process, or another thread, holds the directory.
        NotADirectoryError: the path is not a directory.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file has this name; use another directory", str(directory))
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory, holder, advice):
        try:
            yield
        except BaseException:
            for path in created:
                try:
                    path.rmdir()
                except OSError:
                    break  # not empty, so neither are its parents
            raise

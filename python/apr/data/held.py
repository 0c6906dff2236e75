"""A shard directory held by the one process that writes its shards or its manifest."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager

from apr.errors import RefusedError

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def held(directory: str | os.PathLike[str], otherwise: str) -> Iterator[None]:
    """Hold a directory against every other encoding and repair.

    The kernel lets go of it when the process ends, however it ends.

    Args:
        directory: it must be there.
        otherwise: what to do where it is held; ends the message.

    Raises:
        RefusedError: an encoding or a repair holds it.
        FileNotFoundError, NotADirectoryError: no such directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{os.fspath(directory)}: another encoding or repair is writing here: {otherwise}"
            ) from None
        except OSError:  # a file system without locks: nothing to hold it by
            pass
        yield
    finally:
        os.close(descriptor)

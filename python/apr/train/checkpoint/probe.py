"""How long a checkpoint takes on the disk of a run."""

from __future__ import annotations

import os
import time
import zlib
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Enough that the speed of the disk shows, not that of opening a file.
_PROBE_BYTES = 64 << 20


def checkpoint_seconds(directory: Path, nbytes: int) -> float:
    """Write a part of a checkpoint's size, read it back, and return the seconds that all of it would take.

    Args:
        directory: a directory on the disk. The file has no name there: it leaves no trace.
        nbytes: size of a checkpoint.
    """
    part = min(nbytes, _PROBE_BYTES)
    content = bytes(part)
    with TemporaryFile(dir=directory) as file:
        started = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        zlib.crc32(file.read())
        return (time.perf_counter() - started) * nbytes / part

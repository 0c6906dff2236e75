"""`apr.verify`: check every byte of a file, or of a model in several files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from apr._core import verify_file
from apr.container.file import AprFile
from apr.container.mapped_file import with_dtypes_check
from apr.container.report import Report
from apr.errors import AprError

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Unpack

    from apr.container.legacy.keys import Keys


def verify(
    path: str | PathLike[str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    **keys: Unpack[Keys],
) -> Report:
    """Check a file byte for byte, or every file of a model in several files.

    Damage is reported, not raised, even if it keeps the file from opening. Ctrl-C ends the check soon.

    Args:
        path: the file; or, for a model in several files, its index or directory.
        on_progress: called from time to time with the bytes that have been read and the bytes in all. An
            exception that it raises ends the check.
        keys: `password`, `recipient_key` and `trusted_key` as in `apr.load`. Without a key, the payload of an
            encrypted file is not checked, and a signature only proves integrity.

    Raises:
        OSError: the file cannot be opened or read.
    """
    name = os.fspath(path)
    if name.endswith(".index.json") or os.path.isdir(name):  # noqa: PTH112 (a Path costs more)
        from apr.container.legacy.keys import refuse_keys
        from apr.container.shard_index import find_model
        from apr.container.sharded import failed_index_check, verify_sharded

        model = find_model(Path(name))
        if not model.name.endswith(".apr"):
            try:
                refuse_keys(model, keys)
            except AprError as error:
                return Report(name, opened=False, checks=(failed_index_check(error),))
            report = verify_sharded(model, on_progress)
            return Report(name, report.opened, report.checks)
        path = model
    tell = None
    if on_progress is not None:
        total = os.stat(path).st_size  # noqa: PTH116 (a Path costs more)

        def tell(read: int) -> None:
            # A file that grows meanwhile is read past the size it had.
            on_progress(min(read, total), total)

    report = Report.from_findings(name, verify_file(path, tell, **keys))
    if not report.opened:
        return report
    with AprFile(path) as file:
        return with_dtypes_check(report, file)

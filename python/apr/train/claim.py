"""The claim on a run directory: its one owner, from the first check to the last byte written."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from apr.train import rundir

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from apr.train.checkpoint.saver import Saver


class Claim:
    """Within the context, no other process writes to the run directory.

    Args:
        run_dir: the run directory; it is created if it does not exist.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.existed = run_dir.is_dir()
        """Whether the directory existed before."""
        # There may be two claims: after `move_run_away` the earlier run stays locked under its new name.
        self._claims = ExitStack()
        self._saver: Saver | None = None

    def __enter__(self) -> Self:
        self._claims.enter_context(rundir.claimed(self.run_dir))
        return self

    def move_run_away(self) -> Path:
        """Rename the directory, claim a new one in its place, and return the new path of the old one."""
        moved = rundir.move_away(self.run_dir)
        # A claim is on the directory, not on its name, so the old one has moved along.
        self._claims.enter_context(rundir.claimed(self.run_dir))
        return moved

    def keep_while_saving(self, saver: Saver) -> None:
        """Hold the directory beyond the context for as long as the saver is still writing."""
        self._saver = saver

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        saver = self._saver
        if saver is None or saver.idle:
            self._claims.__exit__(kind, error, trace)
            return

        # A second signal ends the run without waiting for the disk. Its saver may still be writing then, and
        # another run that started in the directory would lose files to it.
        def release() -> None:
            saver.join()
            self._claims.close()

        # A daemon: the kernel releases the claim when the process ends, which must not wait for the disk.
        threading.Thread(target=release, name="apr-checkpoint-wait", daemon=True).start()

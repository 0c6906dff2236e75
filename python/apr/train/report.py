"""What a run says: to people, to `run.log`, and a line of progress that moves on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.status import Status

# Seconds between two lines of progress where there is no terminal to move a line on.
_QUIET_SECONDS = 10.0


class Report:
    """Prints whole lines, and keeps them in a log once there is a run directory."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._log: TextIO | None = None
        self._status: Status | None = None
        self._said = 0.0
        self._early: list[str] = []

    def keep(self, path: Path) -> None:
        """Append what was and will be printed to a log."""
        self._log = path.open("a", encoding="utf-8")
        for text in self._early:
            self._log.write(text + "\n")
        self._early.clear()
        self._log.flush()

    def line(self, text: str) -> None:
        """Print a line."""
        self._hide()
        print(text, file=self._out, flush=True)
        if self._log is None:
            self._early.append(text)
        else:
            self._log.write(text + "\n")
            self._log.flush()

    def progress(self, text: str) -> None:
        """Show how far it is; a line of its own every few seconds where there is no terminal."""
        if self._out.isatty():
            if self._status is None:
                from rich.console import Console

                self._status = Console(file=self._out).status(text)
                self._status.start()
            self._status.update(text)
        elif time.monotonic() - self._said >= _QUIET_SECONDS:
            self._said = time.monotonic()
            self.line(text)

    def _hide(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()
        if self._log is not None:
            self._log.close()


def clock(seconds: float) -> str:
    """Seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

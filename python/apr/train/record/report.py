"""What a run says: lines to people and to `run.log` at a steady rhythm, and a bar on a terminal."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.progress import Progress, TaskID

# Seconds between two lines of progress.
_RHYTHM_SECONDS = 10.0


class Outlet:
    """A stream whose reader may go away: what is said after that is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def line(self, text: str) -> None:
        """Print a line, at once."""
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            self._stream = None

    @property
    def terminal(self) -> TextIO | None:
        """The stream, if it is a terminal."""
        return self._stream if self._stream is not None and self._stream.isatty() else None


class Report:
    """Prints whole lines, and keeps them in a log once there is a run directory."""

    def __init__(self, out: TextIO) -> None:
        self._out = Outlet(out)
        self._log: TextIO | None = None
        self._log_failed = False
        self._bar: tuple[Progress, TaskID] | None = None
        self._said = -_RHYTHM_SECONDS
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
        self._out.line(text)
        if self._log is None:
            self._early.append(text)
        else:
            self._write_log(text)

    def _write_log(self, text: str) -> None:
        """A log that cannot be written, on a full disk, costs a line: what is said goes on."""
        assert self._log is not None
        if self._log_failed:
            return
        try:
            self._log.write(text + "\n")
            self._log.flush()
        except OSError as error:
            self._log_failed = True
            self._out.line(f"warning: {self._log.name}: {error.strerror}")

    def progress(self, text: str, done: int, total: int, *, due: bool = False) -> None:
        """Say how far it is: a line every few seconds, and a bar that moves on a terminal.

        Args:
            text: the line.
            done: of `total`.
            total: see there.
            due: print the line even if the last one was a moment ago.
        """
        if due or time.monotonic() - self._said >= _RHYTHM_SECONDS:
            self._said = time.monotonic()
            self.line(text)
        terminal = self._out.terminal
        if terminal is not None:
            self._show(terminal, text, done, total)

    def _show(self, terminal: TextIO, text: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            bar = Progress(
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(file=terminal),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar = bar, bar.add_task(text, total=total)
            bar.start()
        bar, task = self._bar
        bar.update(task, description=text, completed=done, total=total)

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()
        if self._log is not None:
            with suppress(OSError):  # what a full disk did not take
                self._log.close()

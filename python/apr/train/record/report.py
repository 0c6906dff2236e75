"""What a run prints: lines for people, in `run.log` too, and a progress bar on a terminal."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.progress import Progress, TaskID

# Seconds between two lines of progress.
_PROGRESS_SECONDS = 10.0


class Outlet:
    """A stream that may break: its reader closes it, as `head` does, its terminal is gone, its disk is full.

    Lines printed after that are dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        """Print a line and flush it."""
        if self._stream is None:
            return
        # A path may have characters that the stream's encoding lacks. The commands make their streams escape
        # them; a caller's own may be strict.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            print(text, file=self._stream, flush=True)
        except OSError:
            # Not an error of the run: `apr pretrain … | head` would end with another exit code than the
            # run's, and a run whose ssh connection is lost could not save.
            self._stream = None

    @property
    def terminal(self) -> TextIO | None:
        """The stream, if it is a terminal."""
        return self._stream if self._stream is not None and self._stream.isatty() else None


class Report:
    """Prints whole lines, and keeps them in a log once the run directory is ready for one.

    Args:
        out: where they are printed; None for a process that leaves it to another one.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = Outlet(out)
        self._log: TextIO | None = None
        self._log_failed = False
        self._lines_before_log: list[str] = []
        self._bar: tuple[Progress, TaskID] | None = None
        self._last_progress = -_PROGRESS_SECONDS

    def speak(self, out: TextIO) -> None:
        """Print from now on, in place of the process that did."""
        self._out = Outlet(out)

    def open_log(self, path: Path) -> None:
        """Append to a log everything that was and will be printed."""
        # Appended to: a resumed run continues the log of its earlier part.
        self._log = path.open("a", encoding="utf-8", errors="backslashreplace")
        for text in self._lines_before_log:
            self._log.write(text + "\n")
        self._lines_before_log.clear()
        self._log.flush()

    def line(self, text: str) -> None:
        """Print a line."""
        self._hide_bar()
        self._out.line(text)
        if self._log is None:
            self._lines_before_log.append(text)
        elif not self._log_failed:
            # A full disk must not end the run: it may still free itself, and the verdict is printed anyway.
            try:
                self._log.write(text + "\n")
                self._log.flush()
            except OSError as error:
                self._log_failed = True
                self._out.line(f"warning: {self._log.name}: {error.strerror}")

    def progress(self, text: str, done: int, total: int, *, due: bool = False) -> None:
        """Print a line of progress every ten seconds; on a terminal, also move a bar.

        Args:
            text: the line.
            done: how much is done.
            total: how much there is to do.
            due: print the line now, however recent the last one is.
        """
        # By time, not by steps: a step takes milliseconds or minutes.
        if due or time.monotonic() - self._last_progress >= _PROGRESS_SECONDS:
            self._last_progress = time.monotonic()
            self.line(text)
        terminal = self._out.terminal
        if terminal is not None:
            with suppress(OSError):  # the terminal was lost just now
                self._show_bar(terminal, text, done, total)

    def _show_bar(self, terminal: TextIO, text: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            bar = Progress(
                BarColumn(),
                # A path may contain brackets, which rich would take for markup.
                TextColumn("{task.description}", markup=False),
                console=Console(file=terminal),
                transient=True,
                # The caller's own prints, in a notebook or a callback, are not a run's to capture.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar = bar, bar.add_task(text, total=total)
            bar.start()
        bar, task = self._bar
        bar.update(task, description=text, completed=done, total=total)

    def _hide_bar(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar[0], None
            with suppress(OSError):
                bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide_bar()
        if self._log is not None:
            with suppress(OSError):  # a full disk did not take the last lines
                self._log.close()

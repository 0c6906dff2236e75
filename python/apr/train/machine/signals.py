"""SIGINT and SIGTERM as a request to save and stop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (no error: a request)
    """The run was asked to stop."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}, the second signal: stopped at once")
        self.signal = signal.Signals(number)


class StopRequest:
    """Within it, the first signal is kept for the run to look at; a second one stops at once.

    A third one does what it did before.

    Outside the main thread Python delivers no signals, and nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def check(self) -> None:
        """Stop here if a signal came.

        Raises:
            Interrupted: one did.
        """
        if self.signal is not None:
            raise Interrupted

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            self._restore()
            raise StoppedAtOnce(number)
        self.signal = signal.Signals(number)

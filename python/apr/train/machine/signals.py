"""SIGINT and SIGTERM as a request to save and stop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """A signal asked the run to save and stop."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal asked the run to stop without saving."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped at once by a second signal, {signal.Signals(number).name}")
        self.signal = signal.Signals(number)


class StopRequest:
    """Within the context, the first signal is kept for `check`, and a second one raises `StoppedAtOnce`.

    A third one does what it did before the context. Outside the main thread Python delivers no signals, and
    nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers_before: dict[int, object] = {}

    def check(self) -> None:
        """Stop here if a signal arrived.

        Raises:
            Interrupted: a signal arrived.
        """
        if self.signal is not None:
            raise Interrupted

    def __enter__(self) -> Self:
        # `signal.signal` raises ValueError in any other thread, and a run must work there too.
        if threading.current_thread() is threading.main_thread():
            self._handlers_before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers_before = {}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # The handler only notes the first signal: the interpreter may be anywhere, in the middle of a step or
        # of writing a record.
        if self.signal is not None:
            self._restore()  # a third signal then does what it did before the run
            raise StoppedAtOnce(number)
        self.signal = signal.Signals(number)

"""Signals as a request to save and stop."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from apr.signals import STOPS, WARNINGS, handled

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """A signal asked the run to save and stop."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal asked the run to stop without saving."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped at once by a second signal, {signal.Signals(number).name}")
        self.signal = signal.Signals(number)


class StopRequest:
    """Within the context, the first signal is kept for `check`.

    A second SIGINT or SIGTERM raises `StoppedAtOnce`, and a third one does what it did before the context.
    The warnings of `apr.signals` only ask to stop, however often they come. Outside the main thread Python
    delivers no signals, and nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked = False
        self._handlers = ExitStack()

    def check(self) -> None:
        """Stop here if a signal arrived.

        Raises:
            Interrupted: a signal arrived.
        """
        if self.signal is not None:
            raise Interrupted

    def __enter__(self) -> Self:
        self._restore = self._handlers.enter_context(handled((*STOPS, *WARNINGS), self._on_signal))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # The handler only notes the first signal: the interpreter may be anywhere, in the middle of a step or
        # of writing a record.
        if self._asked and number in STOPS:
            self._restore()  # a third signal then does what it did before the run
            raise StoppedAtOnce(number)
        self._asked |= number in STOPS
        if self.signal is None:
            self.signal = signal.Signals(number)

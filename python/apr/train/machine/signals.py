"""Signals as a request to save and stop."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from apr.signals import STOPS, WARNINGS, handled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType, TracebackType


# A launcher passes a signal on within this time. A person who means a second one presses the keys again.
_COPY_SECONDS = 5.0


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

    Args:
        launched: whether a launcher started this process and passes its own signals on. One that was sent to
            both then arrives twice, as Slurm sends it; the copy changes nothing.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self._launched, self._first_at = launched, 0.0
        self.signal: signal.Signals | None = None
        self._asked = False
        self._handlers = ExitStack()

    def check(self, arrived: Iterable[float]) -> None:
        """Stop here if a signal arrived in any process of the run.

        Args:
            arrived: the number of the signal that each process has noted, 0 for none. What this process
                has noted since it told the others does not count: all of them stop at the same place.

        Raises:
            Interrupted: a signal arrived.
        """
        first = next((number for number in arrived if number), None)
        if first is not None:
            self.signal = signal.Signals(int(first))
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
        now = time.monotonic()
        if self._asked and self._launched and now < self._first_at + _COPY_SECONDS:
            return
        if self._asked and number in STOPS:
            self._restore()  # a third signal then does what it did before the run
            raise StoppedAtOnce(number)
        if number in STOPS and not self._asked:
            self._asked, self._first_at = True, now
        if self.signal is None:
            self.signal = signal.Signals(number)

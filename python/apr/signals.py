"""The signals that ask a program to end: which there are, and handling them for a while."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    Handler = Callable[[int, FrameType | None], None]

# Somebody wants the program to end, and may ask again if it takes too long.
STOPS = (signal.SIGINT, signal.SIGTERM)
# The program will be killed soon: a lost terminal, a scheduler's warning (Slurm's --signal, SGE's -notify),
# the limit on CPU time. The kernel repeats SIGXCPU every second, and a terminal that closes may send several
# SIGHUP, so that a second one does not mean that somebody is in a hurry.
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Handler) -> Iterator[Callable[[], None]]:
    """Call `handler` for these signals within the context; yields a function that ends that early.

    A warning that is ignored stays ignored, as `nohup` wants it. After a SIGHUP, what is printed to a
    terminal that is gone is dropped instead of raising OSError. Outside the main thread Python delivers no
    signals, and nothing changes.
    """
    before: dict[int, object] = {}

    def restore() -> None:
        while before:
            number, earlier = before.popitem()
            signal.signal(number, earlier)  # type: ignore[arg-type]

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _drop_output_to_lost_terminals()
        handler(number, frame)

    # `signal.signal` raises ValueError in any other thread.
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            earlier = signal.getsignal(number)
            # None is a handler that was not installed from Python, and could not be restored.
            if earlier is None or (number in WARNINGS and earlier is signal.SIG_IGN):
                continue
            before[number] = signal.signal(number, on_signal)
    try:
        yield restore
    finally:
        restore()


def _drop_output_to_lost_terminals() -> None:
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError), open(os.devnull, "wb") as devnull:  # noqa: PTH123 (a device)
                os.dup2(devnull.fileno(), descriptor)

"""What happens when one rank of a run fails: the others learn it, and one of them says it.

A rank that fails for a reason of its own leaves the reason in the store that torchrun keeps, and then closes
its connections. The others, whose transfers end with an error, do the same: each says that it is still there,
closes its connections so that nobody waits for it, and looks for the reason. A rank that neither left one nor
is there has died or hangs. The lowest of those that are there writes the run's result.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from apr.errors import EXIT_UNFORESEEN
from apr.train.parallel.world import RankTimeout

if TYPE_CHECKING:
    from apr.train.parallel.world import World

# How long a rank is waited for that may not have noticed yet: so many seconds, and so many steps. torchrun
# kills what is left 30 s after a death.
_GRACE_SECONDS, _GRACE_STEPS, _MAX_GRACE_SECONDS = 3.0, 4, 15.0
# How long a rank waits for the one that writes the result: when one ends, torchrun ends the others.
_WRITING_SECONDS = 20.0
_POLL_SECONDS = 0.05
_GLOO = ("/gloo/", "Application timeout caused pair closure", "Connection closed by peer")


@dataclass(frozen=True)
class Fault:
    """Why the run ends on all ranks, as this rank sees it."""

    detail: str
    """One sentence that names the rank and its host."""
    exit_code: int
    writes: bool
    """Whether this rank writes the result."""


def is_of_others(error: BaseException) -> bool:
    """Whether an error comes from the connection to other ranks, one of which has failed."""
    if isinstance(error, (dist.DistError, dist.DistBackendError, RankTimeout)):
        return True
    # gloo raises plain RuntimeErrors. The text of most begins with the place in its source.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GLOO)


def _is_timeout(text: str) -> bool:
    return "timed out" in text.lower() or "timeout" in text.lower()


class Faults:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fault: Fault | None = None
        """Set once this rank has failed or found that another one has."""

    def own(self, detail: str, exit_code: int) -> None:
        """Tell the other ranks why this one fails."""
        world = self._world
        if world.size == 1 or self.fault is not None:
            return
        where = "" if world.leads else f"{world.name(world.rank)}: "
        reason = {"detail": where + detail, "exit_code": exit_code, "rank": world.rank}
        self._set("reason", json.dumps(reason))
        self._say_here()
        self.fault = Fault(detail, exit_code, writes=world.leads)

    def of_others(self, lost: str, step_seconds: float) -> Fault:
        """Find out which rank failed, after a transfer ended with an error.

        Args:
            lost: the text of that error. The error itself must be gone: it holds connections open.
            step_seconds: how long a step takes: a rank that computes notices after it.
        """
        world = self._world
        self._say_here()
        grace = min(_GRACE_SECONDS + _GRACE_STEPS * step_seconds, _MAX_GRACE_SECONDS)
        until = time.monotonic() + grace
        # Until somebody says why: a rank with a reason of its own does so before it closes its connections.
        while (reason := self._get("reason")) is None and len(self._here()) < world.size:
            if time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        here = self._here()
        gone = [world.name(rank) for rank in range(world.size) if rank not in here]
        code = EXIT_UNFORESEEN
        if reason is not None:
            told = json.loads(reason)
            detail, code = str(told["detail"]), int(told["exit_code"])
        elif not gone:
            first_line = next(iter(lost.splitlines()), "")
            detail = f"{world.name(world.rank)}: the connection to another rank failed: {first_line}"
        elif _is_timeout(lost):
            detail = f"no answer from {' and '.join(gone)} in {world.timeout:g} s (--rank-timeout)"
        else:
            detail = f"{' and '.join(gone)} died; the system's log may say why (dmesg, if memory ran out)"
        self.fault = Fault(detail, code, writes=world.rank == min(here))
        return self.fault

    def wait_until_written(self) -> None:
        """Wait until the result is written, as this rank's end makes torchrun end the others."""
        until = time.monotonic() + _WRITING_SECONDS
        while not self._has("written") and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def written(self) -> None:
        """Tell the other ranks that the result is written."""
        self._set("written", "yes")

    def _say_here(self) -> None:
        self._set(f"here/{self._world.rank}", "yes")
        self._world.leave()

    def _here(self) -> list[int]:
        """Return the ranks that have noticed a fault: those that did not die."""
        return [rank for rank in range(self._world.size) if self._has(f"here/{rank}")]

    # The store is gone if the host that keeps it is: then each rank sees only itself.

    def _set(self, key: str, value: str) -> None:
        assert self._world.store is not None
        with suppress(RuntimeError):
            self._world.store.set(f"fault/{key}", value)

    def _has(self, key: str) -> bool:
        assert self._world.store is not None
        try:
            return self._world.store.check([f"fault/{key}"])
        except RuntimeError:
            return key == f"here/{self._world.rank}"

    def _get(self, key: str) -> str | None:
        assert self._world.store is not None
        with suppress(RuntimeError):
            if self._has(key):
                return self._world.store.get(f"fault/{key}").decode()
        return None

"""Checkpoints written on a thread of their own, one at a time, while training goes on."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from apr.files import sync_file, write_json
from apr.train import rundir
from apr.train.checkpoint import Checkpoint, Room, prune, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch.optim import AdamW

    from apr.model.decoder import Decoder
    from apr.train.checkpoint import Snapshot
    from apr.train.config import PretrainConfig
    from apr.train.state import RunState


class _Abandoned(Exception):  # noqa: N818 (no error: a request)
    """Nobody waits for this checkpoint any more."""


class Saver:
    """Saves the state of a run from copies of it.

    The next save waits for the one before. What goes wrong on the thread is raised by the next call of
    `finished`, `wait` or `save`.
    """

    def __init__(self, config: PretrainConfig, facts: dict[str, Any]) -> None:
        self._config, self._facts = config, facts
        self._dir: Path = config.run_dir
        self._room = Room()
        self._thread: threading.Thread | None = None
        # A thread whose `join` a signal's handler cut short is taken for ended by Python 3.12.
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._written: Checkpoint | None = None
        self._abandoned = threading.Event()
        self.checkpoints: list[Checkpoint] = []
        """Those that were read back, verified and not pruned, the furthest last."""

    def save(
        self,
        checkpoint: Checkpoint,
        model: Decoder,
        optimizer: AdamW,
        state: RunState,
        epoch_facts: dict[str, Any] | None,
    ) -> None:
        """Copy the state now, write it meanwhile.

        Args:
            checkpoint: where to and of what.
            model: copied.
            optimizer: copied.
            state: copied.
            epoch_facts: what goes into an epoch's metadata file, but for the optimiser's digest.

        Raises:
            AprError, OSError: the checkpoint before could not be written.
        """
        self.wait()
        made = snapshot(model, optimizer, state, self._facts, self._room)
        write = partial(self._write, checkpoint, made, epoch_facts, tuple(state.val_loss_history))
        # A second Ctrl-C waits for no disk.
        self._thread = threading.Thread(target=self._try, args=(write,), name="apr-checkpoint", daemon=True)
        self._idle.clear()
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads
            self._thread = None
            self._idle.set()
            raise

    def finished(self) -> Checkpoint | None:
        """The checkpoint that was written since the last call, if one was.

        Raises:
            AprError, OSError: it could not be written.
        """
        if not self._idle.is_set():
            return None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        written, self._written = self._written, None
        return written

    def wait(self) -> Checkpoint | None:
        """As `finished`, once it is."""
        self.join()
        return self.finished()

    def join(self) -> None:
        """Wait for what is being written; raises nothing."""
        self._idle.wait()

    def when_ended(self, then: Callable[[], None]) -> None:
        """Call `then` once nothing is being written: now, or on a thread that waits for it."""
        if self._idle.is_set():
            then()
            return

        def wait() -> None:
            self._idle.wait()
            then()

        threading.Thread(target=wait, name="apr-checkpoint-wait", daemon=True).start()

    def abandon(self) -> None:
        """Give up what is being written; what is there by then stays."""
        self._abandoned.set()

    def _try(self, write: Callable[[], tuple[Checkpoint, list[Checkpoint]]]) -> None:
        try:
            self._written, self.checkpoints = write()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again where training looks)
            self._error = error
        finally:
            self._idle.set()

    def _write(
        self,
        checkpoint: Checkpoint,
        made: Snapshot,
        epoch_facts: dict[str, Any] | None,
        val_losses: Sequence[float],
    ) -> tuple[Checkpoint, list[Checkpoint]]:
        # A checkpoint that outlives a loss of power has its steps' records beside it.
        sync_file(self._dir / rundir.METRICS)
        checkpoint.path.parent.mkdir(exist_ok=True)
        sha = made.write(checkpoint.path, proceed=self._proceed)
        self._proceed()
        if epoch_facts is not None:
            write_json(checkpoint.metadata_path, {**epoch_facts, "optimizer_state_sha": sha})
        return checkpoint, prune([*self.checkpoints, checkpoint], self._config, val_losses)

    def _proceed(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned

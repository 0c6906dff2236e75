"""The checkpoints of a run, written on a thread of their own, one at a time, while training goes on."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from apr.files import sync_file, write_json
from apr.train import rundir
from apr.train.checkpoint.files import Checkpoint, best_of, epoch_path, prune, step_path
from apr.train.checkpoint.host_memory import Room
from apr.train.checkpoint.optimizer_state import optimizer_digest
from apr.train.checkpoint.snapshot import snapshot
from apr.train.evaluation import perplexity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch.optim import AdamW

    from apr.model.decoder import Decoder
    from apr.train.checkpoint.snapshot import Snapshot
    from apr.train.checkpoint.state import RunState
    from apr.train.config import PretrainConfig
    from apr.train.record.recording import Recorder
    from apr.train.record.report import Report


class _Abandoned(Exception):  # noqa: N818 (no error: a request)
    """Nobody waits for this checkpoint any more."""


class Saver:
    """Saves model, optimizer and state of a run from copies of them.

    The next save waits for the one before. What goes wrong on the thread is raised by the next call of
    `look`, `wait` or a save.
    """

    def __init__(
        self,
        config: PretrainConfig,
        facts: dict[str, Any],
        model: Decoder,
        optimizer: AdamW,
        report: Report,
        recorder: Recorder,
    ) -> None:
        self._config, self._facts = config, facts
        self._dir: Path = config.run_dir
        self._model, self._optimizer = model, optimizer
        self._report, self._recorder = report, recorder
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

    @property
    def last(self) -> Checkpoint | None:
        """The furthest one."""
        return self.checkpoints[-1] if self.checkpoints else None

    def best(self, state: RunState) -> Checkpoint | None:
        """Of the epoch with the lowest held-out loss, among those that are there."""
        return best_of(self.checkpoints, state.val_loss_history)

    def take_over(self, checkpoints: list[Checkpoint], state: RunState) -> None:
        """Go on from checkpoints, of which the last one holds this state.

        A process that was killed may have left it without its metadata file, and others unpruned.
        """
        last = checkpoints[-1]
        if last.epoch is not None and not last.metadata_path.exists():
            sha = optimizer_digest(self._model, self._optimizer, state.step)
            write_json(last.metadata_path, {**self._epoch_facts(state), "optimizer_state_sha": sha})
        self.checkpoints = prune(checkpoints, self._config, state.val_loss_history)

    def save_epoch(self, state: RunState) -> None:
        """Have the end of an epoch written, which the state counts."""
        epoch = state.epochs - 1
        self._save(Checkpoint(epoch_path(self._dir, epoch), state.step, epoch), state)

    def save_step(self, state: RunState) -> None:
        """Have a checkpoint on the way written."""
        self._save(Checkpoint(step_path(self._dir, state.step), state.step, None), state)

    def save_the_rest(self, state: RunState) -> Checkpoint | None:
        """Write what was trained since the last checkpoint, and wait; the last one then, if there is any.

        Raises:
            AprError, OSError: it cannot be written.
        """
        self.wait()
        if state.step > 0 and (self.last is None or self.last.step < state.step):
            self.save_step(state)
            self.wait()
        return self.last

    def _save(self, checkpoint: Checkpoint, state: RunState) -> None:
        """Copy all now, write it meanwhile."""
        self._report.progress(f"writing {checkpoint.path.name}", 0, 1)
        self.wait()
        made = snapshot(self._model, self._optimizer, state, self._facts, self._room)
        epoch_facts = None if checkpoint.epoch is None else self._epoch_facts(state)
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

    def _epoch_facts(self, state: RunState) -> dict[str, Any]:
        val_loss = state.val_loss_history[-1]
        return {
            "epoch": state.epochs - 1,
            "train_loss": state.train_loss,
            "val_loss": val_loss,
            "train_ppl": None if state.train_loss is None else perplexity(state.train_loss),
            "val_ppl": perplexity(val_loss),
            "wall_seconds": self._recorder.wall,
            "tokens_seen": state.tokens_seen,
            "grad_norm_max": state.grad_norm_max,
        }

    def look(self) -> None:
        """Tell of the checkpoint that was written since the last call, if one was.

        Raises:
            AprError, OSError: it could not be written.
        """
        if not self._idle.is_set():
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._written is not None:
            written, self._written = self._written, None
            self._recorder.checkpoint(written)

    def wait(self) -> None:
        """As `look`, once it is written."""
        self.join()
        self.look()

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

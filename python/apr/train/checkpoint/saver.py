"""Writing a run's checkpoints on a thread of its own, one at a time, while training continues."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.files import sync_file, write_json
from apr.train import rundir
from apr.train.checkpoint.host_memory import HostMemory
from apr.train.checkpoint.optimizer_state import digest, moments
from apr.train.checkpoint.paths import Checkpoint, best_of, epoch_path, step_path
from apr.train.checkpoint.pruning import prune
from apr.train.checkpoint.snapshot import OPTIMIZER, reserve, snapshot, take_part
from apr.train.record.callbacks import CheckpointRecord
from apr.train.record.metrics import perplexity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import AdamW

    from apr.model.decoder import Decoder
    from apr.train.checkpoint.metadata import CheckpointMetadata
    from apr.train.checkpoint.snapshot import Snapshot
    from apr.train.checkpoint.state import RunState
    from apr.train.config import PretrainConfig
    from apr.train.record.report import Report


class _Abandoned(Exception):  # noqa: N818 (a request, not an error)
    """Nobody waits for this checkpoint any more."""


class Saver:
    """Saves model, optimizer and state of a run from a copy of them.

    A save waits for the one before. An error of the thread is raised by the next call of `poll`, `wait` or a
    save.

    Args:
        config: the options of the run.
        metadata: what all checkpoints of the run have in their metadata.
        model: the model in training.
        optimizer: AdamW over its parameters.
        report: shows what is being written.
        on_saved: called in the training thread for each checkpoint that was written and verified.
        writes: whether this process writes. The others of a run only keep count of its checkpoints.
    """

    def __init__(
        self,
        config: PretrainConfig,
        metadata: CheckpointMetadata,
        model: Decoder,
        optimizer: AdamW,
        report: Report,
        on_saved: Callable[[CheckpointRecord], None],
        *,
        writes: bool = True,
    ) -> None:
        self._config, self._metadata = config, metadata
        self._dir = config.run_dir
        self._model, self._optimizer = model, optimizer
        self._report, self._on_saved, self._writes = report, on_saved, writes
        # One copy, 12 bytes per parameter: a second one, to save faster than the disk, would cost as much
        # again.
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        # `Thread.is_alive` does not do: Python 3.12 takes a thread for ended if a signal's handler raised out
        # of its `join`.
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._saved: Checkpoint | None = None
        self._abandoned = threading.Event()
        self.seconds = 0.0
        """How long the last checkpoint took, from copying it to reading it back; 0 before there is one."""
        self.checkpoints: list[Checkpoint] = []
        """The checkpoints that were verified and not pruned, the latest last."""

    @property
    def last(self) -> Checkpoint | None:
        """The latest checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    def best(self, state: RunState) -> Checkpoint | None:
        """Return the checkpoint of the evaluation with the lowest held-out loss, of those that exist."""
        return best_of(self.checkpoints, state.val_loss_history)

    def adopt(self, checkpoints: list[Checkpoint], state: RunState, wall_seconds: float) -> None:
        """Continue a resumed run's checkpoints.

        A process that was killed may have left the last one without its metadata file, and others unpruned.

        Args:
            checkpoints: the usable ones, the latest last.
            state: the state that the last one contains.
            wall_seconds: seconds since the run began.
        """
        if not self._writes:
            self.checkpoints = checkpoints
            return
        # The metadata file is written after the checkpoint, so only the last one's can be missing.
        last = checkpoints[-1]
        if last.epoch is not None and not last.metadata_path.exists():
            with load(last.path) as file:
                stored = {name: file[OPTIMIZER + name] for name in moments(self._model, self._optimizer)}
                sha256 = digest(stored, state.step)
            _write_epoch_metadata(last, _epoch_metadata(state, wall_seconds), sha256)
        self.checkpoints = prune(checkpoints, self._config, state.val_loss_history)

    def prepare(self) -> None:
        """Start to allocate the memory that checkpoints are copied to, so that no step waits for it."""
        if self._writes:
            reserve(self._model, self._optimizer, self._memory)

    def save_evaluated(self, state: RunState, wall_seconds: float) -> None:
        """Start writing the checkpoint of the evaluation that was just made."""
        epoch = state.epochs - 1
        checkpoint = Checkpoint(epoch_path(self._dir, epoch), state.step, epoch)
        self._save(checkpoint, state, _epoch_metadata(state, wall_seconds))

    def save_step(self, state: RunState) -> None:
        """Start writing a checkpoint between evaluations."""
        self._save(Checkpoint(step_path(self._dir, state.step), state.step, None), state, None)

    def save_unsaved_steps(self, state: RunState) -> Checkpoint | None:
        """Write a checkpoint if there is none of the last step, wait for it, and return the latest one.

        Raises:
            AprError, OSError: it cannot be written.
        """
        self.wait()
        # The checkpoint that was being written may have been of this very step.
        if state.step > 0 and (self.last is None or self.last.step < state.step):
            self.save_step(state)
            self.wait()
        return self.last

    def poll(self) -> None:
        """Report the checkpoint that was written since the last call, if there is one.

        Raises:
            AprError, OSError: it could not be written.
        """
        if not self._idle.is_set():
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        # Raised once, in the thread that trains.
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._on_saved(CheckpointRecord(step=saved.step, epoch=saved.epoch, path=saved.path))

    def wait(self) -> None:
        """Wait until nothing is being written, and report the last checkpoint.

        Raises:
            AprError, OSError: it could not be written.
        """
        self.join()
        self.poll()

    def join(self) -> None:
        """Wait until nothing is being written; errors stay for the next `poll`."""
        # Interruptible: a second signal's handler raises out of the wait.
        self._idle.wait()

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._idle.is_set()

    def abandon(self) -> None:
        """Give up the checkpoint that is being written; those before it stay."""
        self._abandoned.set()

    def _save(self, checkpoint: Checkpoint, state: RunState, epoch_metadata: dict[str, Any] | None) -> None:
        """Copy everything now, and start a thread that writes the copy."""
        if not self._writes:
            take_part(self._model, self._optimizer)
            self.checkpoints = [checkpoint]
            return
        # Before the wait, so that people see why a run with a slow disk stands still.
        self._report.progress(f"writing {checkpoint.path.name}", 0, 1)
        self.wait()
        started = time.monotonic()
        copied = snapshot(self._model, self._optimizer, state, self._metadata, self._memory)
        # A tuple, because the training thread appends to the list meanwhile.
        write = partial(self._write, checkpoint, copied, epoch_metadata, tuple(state.val_loss_history))
        # A daemon, so that the process can end after a second Ctrl-C without waiting for the disk.
        self._thread = threading.Thread(
            target=self._run, args=(write, started), name="apr-checkpoint", daemon=True
        )
        self._idle.clear()
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads
            self._thread = None
            self._idle.set()
            raise

    def _run(self, write: Callable[[], list[Checkpoint]], started: float) -> None:
        try:
            self.checkpoints = write()
            self._saved = self.checkpoints[-1]
            self.seconds = time.monotonic() - started
        # A half-written file was removed by `write`, and the checkpoints before it are untouched.
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again by the next `poll`)
            self._error = error
        finally:
            self._idle.set()

    def _write(
        self,
        checkpoint: Checkpoint,
        copied: Snapshot,
        epoch_metadata: dict[str, Any] | None,
        val_losses: Sequence[float],
    ) -> list[Checkpoint]:
        # The records of the checkpoint's steps go to the disk first. After a loss of power, a checkpoint
        # without them could not be resumed to the same `train.jsonl`.
        sync_file(self._dir / rundir.METRICS)
        # Created with the first checkpoint: `holds_run` takes this directory as the sign of a run.
        checkpoint.path.parent.mkdir(exist_ok=True)
        sha256 = copied.write(checkpoint.path, proceed=self._proceed)
        self._proceed()
        if epoch_metadata is not None:
            _write_epoch_metadata(checkpoint, epoch_metadata, sha256)
        # Only now: the older ones must stay until the new one has been read back. A disk may return other
        # bits than it was given.
        return prune([*self.checkpoints, checkpoint], self._config, val_losses)

    def _proceed(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned


def _epoch_metadata(state: RunState, wall_seconds: float) -> dict[str, Any]:
    val_loss = state.val_loss_history[-1]
    return {
        "epoch": state.epochs - 1,
        "train_loss": state.train_loss,
        "val_loss": val_loss,
        "train_ppl": None if state.train_loss is None else perplexity(state.train_loss),
        "val_ppl": perplexity(val_loss),
        "wall_seconds": wall_seconds,
        "tokens_seen": state.tokens_seen,
        "grad_norm_max": state.grad_norm_max,
    }


def _write_epoch_metadata(checkpoint: Checkpoint, epoch_metadata: dict[str, Any], sha256: str) -> None:
    write_json(checkpoint.metadata_path, {**epoch_metadata, "optimizer_state_sha": sha256})

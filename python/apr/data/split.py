"""What a run trains on and what it holds out: fixed by the directories and three numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.data.windows import Windows
from apr.errors import RefusedError

if TYPE_CHECKING:
    from apr.data.shards import ShardDir


@dataclass(frozen=True, slots=True)
class Split:
    """The training windows and the held-out ones; no id is in both."""

    train: Windows
    held_out: Windows
    what: str
    """Which ids are held out, for people."""


def split_dataset(dataset: ShardDir, val_dataset: ShardDir | None, seq_length: int, val_tokens: int) -> Split:
    """Divide what there is.

    With a `val_dataset`, all of it is held out. Otherwise, of the N ids of `dataset` and with
    H = min(val_tokens, N / 10): the last whole shards if they hold at least H and at most N / 10 ids, else
    the last ⌈H / T⌉ windows. Held-out windows start anew at the first held-out id, training ends before it.

    Args:
        dataset: what to train on.
        val_dataset: what to hold out, a directory of its own.
        seq_length: T, inputs of one window.
        val_tokens: how many tokens evaluation wants.

    Raises:
        RefusedError: too few ids for one window of either kind.
    """
    total = dataset.total_tokens
    if val_dataset is not None:
        train, held_out = Windows(dataset, seq_length), Windows(val_dataset, seq_length)
        what = f"all {val_dataset.total_tokens:,} tokens of {val_dataset.path}"
    else:
        start, what = _held_out_start(dataset, seq_length, min(val_tokens, total // 10))
        train = Windows(dataset, seq_length, 0, start)
        held_out = Windows(dataset, seq_length, start, total)
    for windows, kind in ((train, "train on"), (held_out, "hold out")):
        if len(windows) == 0:
            raise RefusedError(
                f"{windows.shards.path}: {windows.stop - windows.start} tokens to {kind} are less than one "
                f"window of {seq_length} + 1: lower --seq-length or encode more"
            )
    return Split(train, held_out, what)


def _held_out_start(dataset: ShardDir, seq_length: int, wanted: int) -> tuple[int, str]:
    total, starts = dataset.total_tokens, dataset.starts()
    for i in range(len(dataset.shards) - 1, 0, -1):
        held = total - starts[i]
        if held * 10 > total:
            break
        if held >= wanted:
            names = f"{dataset.shards[i].name} to {dataset.shards[-1].name}"
            return starts[i], f"the last {len(dataset.shards) - i} shards ({names}), {held:,} tokens"
    windows = -(-wanted // seq_length)
    start = max(0, (total - 1) // seq_length - windows) * seq_length
    return start, f"the last {windows} windows of {seq_length}, from id {start:,} on"


def evaluation_windows(held_out: Windows, val_tokens: int) -> int:
    """How many held-out windows an evaluation takes: all, or the first that hold `val_tokens`."""
    return min(len(held_out), -(-val_tokens // held_out.seq_length))

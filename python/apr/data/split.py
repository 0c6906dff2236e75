"""What a run trains on and what it holds out. Directories and three numbers determine it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr.data.windows import Windows
from apr.errors import RefusedError
from apr.plurals import counted

if TYPE_CHECKING:
    from apr.data.shards import ShardDir


@dataclass(frozen=True, slots=True)
class Split:
    """Training windows and held-out windows; no id of the stream is in both."""

    train: Windows
    held_out: Windows
    description: str
    """Which ids are held out, in words."""


def split_dataset(dataset: ShardDir, val_dataset: ShardDir | None, seq_length: int, val_tokens: int) -> Split:
    """Divide a dataset into training windows and held-out windows.

    If there is a `val_dataset`, all of it is held out. Otherwise, with the N ids of `dataset` and
    H = min(val_tokens, N / 10): the last whole shards if they contain at least H and at most N / 10 ids, else
    the last ⌈H / T⌉ windows. Held-out windows start at the first held-out id, and training ends before it.

    Args:
        dataset: what to train on.
        val_dataset: a directory to hold out, or None.
        seq_length: T, inputs of one window.
        val_tokens: tokens that an evaluation needs.

    Raises:
        RefusedError: too few ids for one window of either kind.
    """
    total = dataset.total_tokens
    if val_dataset is not None:
        train, held_out = Windows(dataset, seq_length), Windows(val_dataset, seq_length)
        description = f"all {counted(val_dataset.total_tokens, 'token')} of {val_dataset.path}"
    else:
        # The end of the stream. Others evaluated on the first two batches of the training stream itself.
        start, description = _held_out_start(dataset, seq_length, min(val_tokens, total // 10))
        train = Windows(dataset, seq_length, 0, start)
        held_out = Windows(dataset, seq_length, start, total)
    for windows, purpose in ((train, "training"), (held_out, "evaluation")):
        if len(windows) == 0:
            have = counted(windows.stop - windows.start, "token")
            raise RefusedError(
                f"{windows.shards.path}: {have} for {purpose}, fewer than one window of "
                f"{seq_length} + 1; lower --seq-length or encode more text",
                path=windows.shards.path,
            )
    return Split(train, held_out, description)


def _held_out_start(dataset: ShardDir, seq_length: int, tokens: int) -> tuple[int, str]:
    """Return the first held-out id, and a description of what is held out."""
    total, starts = dataset.total_tokens, dataset.starts()
    # Whole shards are preferred: a reader of the directory sees by name what was held out.
    for i in range(len(dataset.shards) - 1, 0, -1):
        held = total - starts[i]
        # A tenth at most: what is held out is not trained on.
        if held * 10 > total:
            break
        if held >= tokens:
            first, last = dataset.shards[i].name, dataset.shards[-1].name
            if first == last:
                return starts[i], f"the last shard ({last}), {counted(held, 'token')}"
            count = len(dataset.shards) - i
            return starts[i], f"the last {count:,} shards ({first} to {last}), {counted(held, 'token')}"
    # Rounded up, so that at least so many tokens are evaluated.
    windows = -(-tokens // seq_length)
    start = max(0, (total - 1) // seq_length - windows) * seq_length
    which = "the last window" if windows == 1 else f"the last {windows:,} windows"
    return start, f"{which} of {counted(seq_length, 'token')}, from id {start:,} on"


def evaluation_windows(held_out: Windows, val_tokens: int) -> int:
    """Return how many held-out windows an evaluation uses: enough for `val_tokens`, or all."""
    return min(len(held_out), -(-val_tokens // held_out.seq_length))

"""The loss of a model file on a shard directory, and whether its training could have seen that text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from apr.container.load import load
from apr.data.corpus_check import corpus_problems
from apr.data.shards import ShardDir
from apr.data.split import split_dataset
from apr.data.windows import Windows
from apr.errors import RefusedError, UsageError
from apr.model.decoder import Decoder
from apr.train.evaluation import Evaluation, evaluate
from apr.train.machine.device import choose_device, default_precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apr.train.config import Precision

_SEQ_LENGTH, _VAL_TOKENS = 1024, 262_144

Text = Literal["held_out", "training", "other"]
"""What the text is to the model: held out from its training, a part of it, or none that the file knows of."""
WORDS: dict[Text, str] = {
    "held_out": "held-out loss",
    "training": "loss on training text",
    "other": "loss",
}


def evaluate_file(
    path: Path,
    dataset: Path,
    *,
    held_out: bool = False,
    seq_length: int | None = None,
    val_tokens: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    precision: Precision | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate a model file; defaults are those of its training, where its metadata hold them.

    Args:
        path: the .apr file.
        dataset: shard directory; of the one that the checkpoint held out from, only the held-out range.
        held_out: only what is held out: by the checkpoint's own training where it held out from `dataset`,
            else by the rule of training.
        seq_length: tokens of a window.
        val_tokens: tokens to take at most.
        batch_size: windows at a time.
        device: auto, cpu, cuda or cuda:N.
        precision: bf16 or fp32.
        on_progress: called with (windows done, windows in all).

    Returns:
        The evaluation, and under which conditions it was made; `text` says what the text is to the model.

    Raises:
        AprError, OSError, RefusedError: something is not what it should be; `held_out` of text that the
            checkpoint was trained on.
    """
    where = choose_device(device)
    with load(path) as file:
        inside = file.metadata.get("training")
    training: dict[str, Any] = inside if isinstance(inside, dict) else {}
    tokens = _count(path, training, "val_tokens", val_tokens) or _VAL_TOKENS
    length = _count(path, training, "seq_length", seq_length)
    _count(path, {}, "batch_size", batch_size)
    model = Decoder.from_apr(path, where)
    if length is None:
        length = min(_SEQ_LENGTH, model.config.max_position_embeddings)
    if length > model.config.max_position_embeddings:
        raise RefusedError(
            f"--seq-length {length} is beyond the model's {model.config.max_position_embeddings} positions"
        )
    shards = ShardDir(dataset)
    scan = shards.scan()
    if scan.max_id >= model.config.vocab_size:
        raise RefusedError(
            f"{dataset}: id {scan.max_id} is beyond the model's vocabulary of {model.config.vocab_size}: "
            "encode with the model's tokenizer"
        )
    windows, text, ids = _choose(shards, scan.corpus_sha256, training, length, tokens, held_out=held_out)
    if len(windows) == 0:
        raise RefusedError(
            f"{dataset}: {windows.stop - windows.start} tokens are less than one window of {length} + 1"
        )
    found = corpus_problems(scan, *(shards.manifest.get(key) for key in ("eos_token_id", "unk_token_id")))
    if found:
        raise RefusedError(f"{dataset}: this is no text: {'; '.join(found)}")
    kind = precision or default_precision(where)
    with torch.no_grad():
        made = evaluate(
            model, windows, val_tokens=tokens, batch_size=batch_size, precision=kind, on_progress=on_progress
        )
    return made, {"text": text, "seq_length": length, "device": str(where), "precision": kind, "ids": ids}


def _choose(
    shards: ShardDir,
    corpus_sha256: str | None,
    training: dict[str, Any],
    length: int,
    tokens: int,
    *,
    held_out: bool,
) -> tuple[Windows, Text, str]:
    """Which windows to take, what they are to the model, and the same for people."""
    kept, data = (_facts(training, key) for key in ("held_out", "data"))
    if kept.get("corpus_sha256", "") == corpus_sha256 and all(
        isinstance(kept.get(key), int) for key in ("start", "stop")
    ):
        # Training ended before them, or had another corpus.
        windows = Windows(shards, length, kept["start"], kept["stop"])
        return windows, "held_out", f"the held-out ids {kept['start']:,} to {kept['stop']:,}"
    if data.get("corpus_sha256", "") == corpus_sha256:
        if held_out:
            raise RefusedError(
                f"{shards.path}: the model was trained on all of it, nothing of it is held out: name what "
                "the run had as --val-dataset, or leave --held-out away for the loss on training text"
            )
        return Windows(shards, length), "training", "all"
    if held_out:
        parts = split_dataset(shards, None, length, tokens)
        return parts.held_out, "held_out", parts.description
    return Windows(shards, length), "other", "all"


def _count(path: Path, training: dict[str, Any], name: str, given: int | None) -> int | None:
    """A flag's value, else the checkpoint's, else None."""
    value, flag = training.get(name) if given is None else given, f"--{name.replace('_', '-')}"
    if value is None or (isinstance(value, int) and value >= 1):
        return value
    if given is None:
        raise UsageError(f"{path}: training.{name} is {value!r}, no count: give {flag}")
    raise UsageError(f"{flag} is {value}: it must be at least 1")


def _facts(training: dict[str, Any], key: str) -> dict[str, Any]:
    inside = training.get(key)
    return inside if isinstance(inside, dict) else {}

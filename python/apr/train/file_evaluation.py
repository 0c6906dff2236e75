"""The held-out loss of a model file on a shard directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from apr.container.file import load
from apr.data.corpus_check import problems
from apr.data.shards import ShardDir
from apr.data.split import split
from apr.data.windows import Windows
from apr.errors import RefusedError, UsageError
from apr.model.decoder import Decoder
from apr.train.device import choose_device, default_precision
from apr.train.evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apr.train.config import Precision

_SEQ_LENGTH, _VAL_TOKENS = 1024, 262_144


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
        held_out: apply the split rule of training to `dataset`.
        seq_length: tokens of a window.
        val_tokens: tokens to take at most.
        batch_size: windows at a time.
        device: auto, cpu, cuda or cuda:N.
        precision: bf16 or fp32.
        on_progress: called with (windows done, windows in all).

    Returns:
        The evaluation, and under which conditions it was made.

    Raises:
        AprError, OSError, RefusedError: something is not what it should be.
    """
    where = choose_device(device)
    with load(path) as file:
        inside = file.metadata.get("training")
    training: dict[str, Any] = inside if isinstance(inside, dict) else {}
    length = training.get("seq_length", _SEQ_LENGTH) if seq_length is None else seq_length
    tokens = training.get("val_tokens", _VAL_TOKENS) if val_tokens is None else val_tokens
    for name, value in (("--seq-length", length), ("--val-tokens", tokens), ("--batch-size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value}: it must be at least 1")
    model = Decoder.from_apr(path, where)
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
    kept = training.get("held_out")
    if not (isinstance(kept, dict) and all(isinstance(kept.get(key), int) for key in ("start", "stop"))):
        kept = {}
    if held_out:
        parts = split(shards, None, length, tokens)
        windows, ids = parts.held_out, parts.what
    elif kept.get("corpus_sha256") == scan.corpus_sha256:
        windows = Windows(shards, length, kept["start"], kept["stop"])
        ids = f"the held-out ids {kept['start']:,} to {kept['stop']:,}"
    else:
        windows, ids = Windows(shards, length), "all"
    if len(windows) == 0:
        raise RefusedError(
            f"{dataset}: {windows.stop - windows.start} tokens are less than one window of {length} + 1"
        )
    found = problems(scan, *(shards.manifest.get(key) for key in ("eos_token_id", "unk_token_id")))
    if found:
        raise RefusedError(f"{dataset}: this is no text: {'; '.join(found)}")
    kind = precision or default_precision(where)
    with torch.no_grad():
        made = evaluate(
            model, windows, val_tokens=tokens, batch_size=batch_size, precision=kind, on_progress=on_progress
        )
    return made, {"seq_length": length, "device": str(where), "precision": kind, "ids": ids}

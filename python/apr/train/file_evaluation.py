"""The loss of a model file on a shard directory, and whether the model was trained on that text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from apr.container.load import load
from apr.data.corpus_check import corpus_problems
from apr.data.same_tokenizer import check_same_tokenizer, facts_of_model, facts_of_shards, unknown_note
from apr.data.shards import ShardDir
from apr.data.split import evaluation_windows, split_dataset
from apr.data.windows import Windows
from apr.errors import RefusedError, UsageError
from apr.model.decoder import Decoder
from apr.plurals import counted
from apr.train.evaluation import Evaluation, evaluate, group_size
from apr.train.machine.device import choose_device, default_precision
from apr.train.machine.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apr.train.config import Precision

# Used where neither a flag nor the file's metadata has a value.
_SEQ_LENGTH, _VAL_TOKENS = 1024, 262_144

Text = Literal["held_out", "training", "other"]
"""What the text is to the model: held out from its training, a part of it, or unknown to the file."""
LOSS_NAMES: dict[Text, str] = {
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
    device: str = "auto",
    precision: Precision | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate a model file; the defaults are those of its training, if its metadata has them.

    Args:
        path: the .apr file.
        dataset: the shard directory. If the model's training held out a part of it, only that part is used.
        held_out: use only held-out text: what the model's training held out from `dataset`, or else what
            training on `dataset` would hold out.
        seq_length: number of tokens of a window.
        val_tokens: largest number of tokens to evaluate on.
        device: auto, cpu, cuda or cuda:N.
        precision: bf16 or fp32.
        on_progress: called with (windows done, windows in total).

    Returns:
        The evaluation, and its conditions: `text` (what the text is to the model), `seq_length`, `device`,
        `precision`, `ids` (which ids, for people) and `tokenizer` (the same as that of the shards, or what is
        not known, for people).

    Raises:
        AprError, OSError: the file or the shards cannot be read.
        RefusedError: they do not fit together; or `held_out` is set and the model was trained on all of it.
    """
    chosen_device = choose_device(device)
    # Conditions that the checkpoint records are the defaults, so that the number equals the run's own.
    with load(path) as file:
        training = _mapping(file.metadata, "training")
        tokenizer = facts_of_model(path, file.metadata)
    tokens = _count(path, training, "val_tokens", val_tokens) or _VAL_TOKENS
    length = _count(path, training, "seq_length", seq_length)
    model = Decoder.from_apr(path, chosen_device)
    positions = model.config.max_position_embeddings
    if length is None:
        # Only a default is lowered to fit the model. A length that was asked for is refused below.
        length = min(_SEQ_LENGTH, positions)
    if length > positions:
        raise RefusedError(
            f"{path}: --seq-length {length} is more than the model's {positions} positions; use --seq-length "
            f"{positions} or less",
            path=path,
        )
    shards = ShardDir(dataset)
    tokenizers = (tokenizer, facts_of_shards(dataset, shards.manifest))
    check_same_tokenizer(*tokenizers)
    windows, text = _open_windows(
        shards, training, model.config.vocab_size, length, tokens, held_out=held_out
    )
    used_precision = precision or default_precision(chosen_device)
    try:
        evaluation = evaluate(
            model, windows, val_tokens=tokens, precision=used_precision, on_progress=on_progress
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        group = counted(group_size(length, chosen_device), "window")
        raise RefusedError(
            f"{path}: out of memory on {chosen_device} while evaluating {group} of {length} tokens; use a "
            "shorter --seq-length, --precision bf16 or a device with more memory",
            path=path,
        ) from None
    return evaluation, {
        "text": text,
        "seq_length": length,
        "device": str(chosen_device),
        "precision": used_precision,
        "ids": _evaluated_ids(windows, text, tokens),
        "tokenizer": unknown_note(tokenizers) or "the same",
    }


def _open_windows(
    shards: ShardDir, training: dict[str, Any], vocab_size: int, length: int, tokens: int, *, held_out: bool
) -> tuple[Windows, Text]:
    """Check that the shards are text of this vocabulary, and return the windows to evaluate."""
    dataset, scan = shards.path, shards.scan()
    # A corpus of one id has a loss near zero, which others have taken for success.
    oddities = corpus_problems(scan, *(shards.manifest.get(key) for key in ("eos_token_id", "unk_token_id")))
    if oddities:
        raise RefusedError(f"{dataset}: does not look like text: {'; '.join(oddities)}", path=dataset)
    if scan.max_id >= vocab_size:
        raise RefusedError(
            f"{dataset}: contains id {scan.max_id}, but the model's vocabulary has only {vocab_size} ids; "
            "encode with the model's tokenizer",
            path=dataset,
        )
    windows, text = _choose_windows(shards, scan.corpus_sha256, training, length, tokens, held_out=held_out)
    if len(windows) == 0:
        have = counted(windows.stop - windows.start, "token")
        raise RefusedError(
            f"{dataset}: {have}, fewer than one window of {length} + 1; lower --seq-length",
            path=dataset,
        )
    return windows, text


def _choose_windows(
    shards: ShardDir,
    corpus_sha256: str | None,
    training: dict[str, Any],
    length: int,
    tokens: int,
    *,
    held_out: bool,
) -> tuple[Windows, Text]:
    """Return the windows to evaluate, and what they are to the model."""
    kept, data = _mapping(training, "held_out"), _mapping(training, "data")
    start, stop = kept.get("start"), kept.get("stop")
    # Compared by hash: the directory may have moved since. The hash of a directory may be None, which a file
    # without the key must not match: hence "".
    if kept.get("corpus_sha256", "") == corpus_sha256 and isinstance(start, int) and isinstance(stop, int):
        return Windows(shards, length, start, stop), "held_out"
    if data.get("corpus_sha256", "") == corpus_sha256:
        if held_out:
            raise RefusedError(
                f"{shards.path}: the model was trained on all of it; pass the run's --val-dataset as "
                "--dataset, or leave out --held-out",
                path=shards.path,
            )
        return Windows(shards, length), "training"
    if held_out:
        parts = split_dataset(shards, None, length, tokens)
        return parts.held_out, "held_out"
    return Windows(shards, length), "other"


def _evaluated_ids(windows: Windows, text: Text, tokens: int) -> str:
    """Return which ids an evaluation of so many tokens reads, for people."""
    # A window's last id is only predicted, and is the first of the next one.
    last = windows.start + evaluation_windows(windows, tokens) * windows.seq_length
    which = "the held-out ids" if text == "held_out" else "ids"
    return f"{windows.start:,} to {last:,} of {which} {windows.start:,} to {windows.stop - 1:,}"


def _count(path: Path, training: dict[str, Any], name: str, given: int | None) -> int | None:
    """Return a flag's value, or else the checkpoint's, or else None."""
    flag = f"--{name.replace('_', '-')}"
    if given is not None:
        if given < 1:
            raise UsageError(f"{flag} must be at least 1, not {given}")
        return given
    value = training.get(name)
    if value is None or (isinstance(value, int) and value >= 1):
        return value
    raise UsageError(f"{path}: training.{name} is {value!r}, which is not a count; pass {flag}", path=path)


def _mapping(metadata: Any, key: str) -> dict[str, Any]:  # noqa: ANN401 (metadata of any file)
    value = metadata.get(key)
    return value if isinstance(value, dict) else {}

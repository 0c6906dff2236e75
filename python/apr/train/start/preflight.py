"""Everything that is checked before the first step; each refusal is one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch

from apr.contracts.verdict import load_decidable
from apr.data.corpus_check import corpus_problems
from apr.data.scan import Scan, common_shards
from apr.data.shards import ShardDir
from apr.data.split import split_dataset
from apr.errors import AprError, PreflightError, RefusedError
from apr.train import rundir
from apr.train.checkpoint.resume import find
from apr.train.machine.device import choose_device, describe
from apr.train.prepared import Prepared
from apr.train.record.tensorboard import check_tensorboard
from apr.train.start import origin
from apr.train.start.needs import Needs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apr.data.split import Split
    from apr.data.tokenizers import LoadedTokenizer
    from apr.model.config import ModelConfig
    from apr.train.checkpoint.resume import Found
    from apr.train.config import PretrainConfig
    from apr.train.start.origin import Origin

# Compiling takes as long as some hundred steps of a small model.
_STEPS_WORTH_COMPILING = 200
# Kaplan-style rule of thumb: fewer training tokens a parameter leave a model from scratch mostly untrained.
_ENOUGH_TOKENS_A_PARAMETER = 10
P = ParamSpec("P")
T = TypeVar("T")


def prepare(config: PretrainConfig) -> Prepared:
    """Check a run's options against files and machine.

    What can be decided independently is, so that everything wrong is said at once.

    Raises:
        AprError: the init file is not valid.
        FileNotFoundError: something that is named is not there.
        RefusedError: it cannot run, or should not; the message says what to do.
        PreflightError: several of these.
    """
    refusals = Refusals()
    attempt = refusals.attempt
    attempt(rundir.check_run_dir, config)
    attempt(config.check_warmup)
    device = attempt(choose_device, config.device)
    if config.contract is not None:
        attempt(load_decidable, config.contract)
    if config.tensorboard:
        attempt(check_tensorboard)
    found = attempt(find, config.run_dir) if config.resume else None
    read = _read(refusals, config, found)
    _check_text(refusals, config, read)
    parts = _attempt_split(refusals, config, read)
    cycles = None if parts is None else attempt(_check_length, config, len(parts.train))
    start, dataset = read.start, read.dataset
    needs = None
    if start is not None:
        needs = Needs.of(config, start.model, device or torch.device("cpu"))
        attempt(needs.check_disk, config)
        if device is not None:
            attempt(needs.check_memory)
    if refusals.found and start is not None:
        # A run that starts looks at all values while it fills the model; this one is looked at for its user.
        attempt(start.check_values)
    refusals.raise_if_any()
    assert dataset is not None
    assert start is not None
    assert device is not None
    assert parts is not None
    assert needs is not None
    return Prepared(
        # The chosen precision is written to config.yaml: a run resumed on another device keeps it.
        config=config.resolved(needs.precision),
        model_config=start.model,
        split=parts,
        device=device,
        precision=needs.precision,
        needs=needs,
        facts=_facts(config, start, needs.parameters, parts, dataset, read.val_dataset or dataset),
        notes=(
            f"device: {describe(device)}, {needs.precision}"
            + (" (chosen by auto)" if config.device == "auto" else ""),
            *([f"tokenizer: {read.tokenizer.note}"] if read.tokenizer and read.tokenizer.note else []),
            *(cycles or []),
            *_provision(config, needs.parameters),
            *_slower_than_need_be(config, device),
        ),
        weights=start.weights,
        found=found,
    )


def _slower_than_need_be(config: PretrainConfig, device: torch.device) -> list[str]:
    if config.compile or device.type != "cuda" or config.num_steps < _STEPS_WORTH_COMPILING:
        return []
    return ["--compile takes about 20 s once and makes a step on this device faster, a small model's twice"]


class Refusals:
    """Gathers what is wrong, instead of stopping at the first."""

    def __init__(self) -> None:
        self.found: list[Exception] = []

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What the function gives, or None if it refuses."""
        try:
            return function(*args, **kwargs)
        except PreflightError as error:
            self.found += error.problems
        except (AprError, RefusedError, OSError) as error:
            self.found.append(error)
        return None

    def raise_if_any(self) -> None:
        """Raise what was found.

        Raises:
            PreflightError: more than one thing; one alone is raised as it is.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise PreflightError(self.found)


@dataclass(frozen=True, eq=False)
class _Corpus:
    shards: ShardDir
    scan: Scan


@dataclass(frozen=True, eq=False)
class _Read:
    """What a run's options name, as far as it could be read."""

    dataset: _Corpus | None
    val_dataset: _Corpus | None
    tokenizer: LoadedTokenizer | None
    start: Origin | None

    @property
    def corpora(self) -> list[_Corpus]:
        return [corpus for corpus in (self.dataset, self.val_dataset) if corpus is not None]


def _read(refusals: Refusals, config: PretrainConfig, found: Found | None) -> _Read:
    attempt = refusals.attempt
    dataset = attempt(_corpus, config.dataset)
    val_dataset = None if config.val_dataset is None else attempt(_corpus, config.val_dataset)
    tokenizer = None
    goes_on = found is not None and found.last is not None  # from a checkpoint, which holds all but the data
    if config.tokenizer is not None and (config.tokenizer.exists() or not goes_on):
        tokenizer = attempt(_tokenizer, config.tokenizer)
    start = _attempt_origin(refusals, config, tokenizer, dataset, found)
    return _Read(dataset, val_dataset, tokenizer, start)


def _check_text(refusals: Refusals, config: PretrainConfig, read: _Read) -> None:
    """Whether tokenizer, shards and model belong together."""
    attempt, start, fitting = refusals.attempt, read.start, read.tokenizer
    if start is not None:
        fitting = attempt(_fitting, start.model, read.tokenizer)
        attempt(_check_positions, config, start.model)
    for corpus in read.corpora:
        attempt(_check_corpus, corpus, read.tokenizer, start.carried if start else {})
        if start is not None:
            attempt(_check_ids, start.model, corpus)
        attempt(_check_encoder, corpus, fitting)


def _attempt_split(refusals: Refusals, config: PretrainConfig, read: _Read) -> Split | None:
    dataset, val_dataset = read.dataset, read.val_dataset
    if dataset is None or (val_dataset is None and config.val_dataset is not None):
        return None
    held_out = None if val_dataset is None else val_dataset.shards
    parts = refusals.attempt(split_dataset, dataset.shards, held_out, config.seq_length, config.val_tokens)
    if val_dataset is not None:
        refusals.attempt(_check_overlap, config, dataset.scan, val_dataset.scan)
    return parts


def _corpus(path: Path) -> _Corpus:
    shards = ShardDir(path)
    return _Corpus(shards, shards.scan())


def _attempt_origin(
    refusals: Refusals,
    config: PretrainConfig,
    tokenizer: LoadedTokenizer | None,
    dataset: _Corpus | None,
    found: Found | None,
) -> Origin | None:
    """The model, or None where it is refused, or where what would give its vocabulary was."""
    if found is not None and found.last is not None:
        return refusals.attempt(origin.from_checkpoint, found.last.path, config.init, config.arch)
    if config.init is not None:
        return refusals.attempt(origin.from_file, config.init, tokenizer)
    if dataset is None or (tokenizer is None and config.tokenizer is not None):
        return None
    assert config.arch is not None
    sizes = (tokenizer.vocab_size if tokenizer else None, dataset.shards.vocab_size, dataset.scan.max_id + 1)
    vocab_size = next(size for size in sizes if size is not None)
    return refusals.attempt(origin.from_scratch, config.arch, vocab_size, tokenizer)


def _tokenizer(path: Path) -> LoadedTokenizer:
    from apr.data.tokenizers import load_tokenizer

    return load_tokenizer(path)


def _fitting(model: ModelConfig, tokenizer: LoadedTokenizer | None) -> LoadedTokenizer | None:
    """The tokenizer, whose vocabulary the model has."""
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise RefusedError(
            f"{tokenizer.source}: the tokenizer's vocabulary has {tokenizer.vocab_size} ids, "
            f"the model's {model.vocab_size}: they do not belong together"
        )
    return tokenizer


def _check_positions(config: PretrainConfig, model: ModelConfig) -> None:
    positions = model.max_position_embeddings
    if config.seq_length > positions:
        raise RefusedError(f"--seq-length {config.seq_length} is beyond the model's {positions} positions")


def _check_encoder(corpus: _Corpus, tokenizer: LoadedTokenizer | None) -> None:
    said = corpus.shards.vocab_size
    if said is not None and tokenizer is not None and said != tokenizer.vocab_size:
        raise RefusedError(
            f"{corpus.shards.path}: encoded with a vocabulary of {said} ids, {tokenizer.source} has "
            f"{tokenizer.vocab_size}: give the tokenizer that encoded it"
        )


def _check_ids(model: ModelConfig, corpus: _Corpus) -> None:
    shards, said = corpus.shards, corpus.shards.vocab_size
    if said is not None and said > model.vocab_size:
        raise RefusedError(
            f"{shards.path}: encoded with a vocabulary of {said} ids, the model has {model.vocab_size}: "
            "encode with the model's tokenizer"
        )
    highest = max(corpus.scan.shards, key=lambda shard: shard.max_id)
    if highest.max_id >= model.vocab_size:
        raise RefusedError(
            f"{shards.path / highest.name}: id {highest.max_id} is beyond the model's vocabulary of "
            f"{model.vocab_size}: encode with the model's tokenizer"
        )


def _check_corpus(corpus: _Corpus, tokenizer: LoadedTokenizer | None, carried: dict[str, Any]) -> None:
    """Whether the ids can be text; what ends one is known to the tokenizer, the init file or the manifest."""
    if tokenizer is not None:
        eos, unk = tokenizer.eos_id, tokenizer.unk_id
    else:
        eos = corpus.shards.manifest.get("eos_token_id", carried.get("tokenizer.eos_token_id"))
        unk = corpus.shards.manifest.get("unk_token_id", carried.get("tokenizer.unknown_token_id"))
        unk = None if unk == eos else unk
    found = corpus_problems(corpus.scan, eos, unk)
    if found:
        raise RefusedError(f"{corpus.shards.path}: this is no text: {'; '.join(found)}")


def _check_overlap(config: PretrainConfig, scan: Scan, val_scan: Scan) -> None:
    for train, held_out in common_shards(scan.shards, val_scan.shards):
        raise RefusedError(
            f"{config.val_dataset}/{held_out} is {config.dataset}/{train}, byte for byte: "
            "held-out shards must not be trained on"
        )


def _check_length(config: PretrainConfig, windows: int) -> list[str]:
    needed = config.num_steps * config.windows_per_step
    if needed <= windows:
        return []
    if not config.allow_shard_cycle:
        raise RefusedError(
            f"{config.dataset}: {needed:,} windows of {config.seq_length} tokens planned, {windows:,} there: "
            f"take --num-steps {windows // config.windows_per_step}, encode more, or --allow-shard-cycle"
        )
    return [f"the {windows:,} training windows are visited {needed / windows:.1f} times"]


def _provision(config: PretrainConfig, parameters: int) -> list[str]:
    tokens = config.num_steps * config.tokens_per_step
    enough = tokens >= _ENOUGH_TOKENS_A_PARAMETER * parameters
    if config.init is not None or config.force_under_provisioned or enough:
        return []
    return [
        f"warning: {tokens:,} training tokens are {tokens / parameters:.2g} a parameter; "
        f"from scratch {_ENOUGH_TOKENS_A_PARAMETER} are the least (--force-under-provisioned silences this)"
    ]


def _facts(
    config: PretrainConfig,
    start: Origin,
    parameters: int,
    parts: Split,
    dataset: _Corpus,
    held_out: _Corpus,
) -> dict[str, Any]:
    training = {
        "mode": config.mode,
        "seed": config.seed,
        "seq_length": config.seq_length,
        "batch_size": config.batch_size,
        "grad_accum": config.grad_accum,
        "val_tokens": config.val_tokens,
        "base_model": start.base,
        "data": {
            "total_tokens": dataset.scan.total_tokens,
            "corpus_sha256": dataset.scan.corpus_sha256,
            "manifest_sha256": parts.train.shards.manifest_sha256,
        },
        "held_out": {
            "corpus_sha256": held_out.scan.corpus_sha256,
            "start": parts.held_out.start,
            "stop": parts.held_out.stop,
        },
    }
    sizes = {"model_type": start.model.family, "param_count": parameters, **start.model.to_metadata()}
    facts = {**sizes, **start.carried}
    plain: dict[str, Any] = json.loads(json.dumps({**facts, "training": training}))  # as a checkpoint has it
    return plain

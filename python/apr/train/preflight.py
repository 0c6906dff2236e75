"""Everything that is checked before the first step; each refusal is one line."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch

from apr.container.file import load
from apr.container.metadata import HF_TOKENIZER, VOCABULARY
from apr.contracts.schema import load_contract
from apr.data.corpus_check import problems
from apr.data.scan import Scan, common_shards
from apr.data.shards import ShardDir
from apr.data.split import Split, evaluation_windows, split
from apr.errors import AprError, PreflightError, RefusedError
from apr.model.config import ModelConfig
from apr.model.decoder import Decoder
from apr.model.fill import check_values, fill, has_head, match
from apr.model.init import init_weights, load_arch
from apr.train import rundir
from apr.train.device import choose_device, describe
from apr.train.needs import Needs
from apr.train.tensorboard import check_tensorboard

if TYPE_CHECKING:
    from collections.abc import Callable

    from apr.container.file import AprFile
    from apr.data.tokenizers import LoadedTokenizer
    from apr.train.config import Precision, PretrainConfig

# Compiling takes as long as some hundred steps of a small model.
_STEPS_WORTH_COMPILING = 200
# Kaplan-style rule of thumb: fewer training tokens a parameter leave a model from scratch mostly untrained.
_ENOUGH_TOKENS_A_PARAMETER = 10
_TOKENIZER_KEYS = ("tokenizer.", "chat_template", "special_tokens", HF_TOKENIZER)
P = ParamSpec("P")
T = TypeVar("T")
_CARRIED_KEYS = ("name", "license", "data_source", "data_license")


@dataclass(frozen=True)
class Prepared:
    """A run that may start: what it trains, on what, where."""

    config: PretrainConfig
    """With the mode's row and the precision filled in."""
    model_config: ModelConfig
    split: Split
    device: torch.device
    precision: Precision
    needs: Needs
    facts: dict[str, Any]
    """Metadata of its checkpoints, but for the run's state."""
    notes: tuple[str, ...]
    """What a user should know, and warnings."""

    @property
    def parameters(self) -> int:
        """Of the model; a tied head counts once."""
        return self.needs.parameters

    @property
    def val_tokens(self) -> int:
        """Tokens that each evaluation takes."""
        return evaluation_windows(self.split.held_out, self.config.val_tokens) * self.config.seq_length

    def build_model(self) -> Decoder:
        """The model that the run starts from, on its device.

        Raises:
            WeightsError: the tensors of the init file do not fit.
        """
        model = Decoder.empty(self.model_config, self.device, torch.float32)
        if self.config.init is None:
            init_weights(model, self.config.seed)
        else:
            with load(self.config.init) as file:
                fill(model, file)
        return model


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
    attempt(rundir.check_free, config)
    config = attempt(config.resolved) or config
    device = attempt(choose_device, config.device)
    if config.contract is not None:
        attempt(load_contract, config.contract)
    if config.tensorboard:
        attempt(check_tensorboard)
    dataset = attempt(_corpus, config.dataset)
    val_dataset = None if config.val_dataset is None else attempt(_corpus, config.val_dataset)
    tokenizer = None if config.tokenizer is None else attempt(_tokenizer, config.tokenizer)
    corpora = [corpus for corpus in (dataset, val_dataset) if corpus is not None]
    model = _attempt_model(refusals, config, tokenizer, dataset)
    fitting = tokenizer
    if model is not None:
        fitting = attempt(_fitting, model.config, tokenizer)
        attempt(_check_positions, config, model.config)
    for corpus in corpora:
        attempt(_check_corpus, corpus, tokenizer, model.carried if model else {})
        if model is not None:
            attempt(_check_ids, model.config, corpus)
        attempt(_check_encoder, corpus, fitting)
    parts = None
    if dataset is not None and (config.val_dataset is None or val_dataset is not None):
        held_out = None if val_dataset is None else val_dataset.shards
        parts = attempt(split, dataset.shards, held_out, config.seq_length, config.val_tokens)
    if dataset is not None and val_dataset is not None:
        attempt(_check_overlap, config, dataset.scan, val_dataset.scan)
    cycles = None if parts is None else attempt(_check_length, config, len(parts.train))
    needs = None
    if model is not None:
        needs = Needs.of(config, model.config, device or torch.device("cpu"))
        attempt(needs.check_disk, config)
        if device is not None:
            attempt(needs.check_memory)
    if refusals.found and model is not None and config.init is not None:
        # A run that starts looks at all values while it fills the model; this one is looked at for its user.
        attempt(_check_values, config.init, model.config)
    refusals.raise_if_any()
    assert dataset is not None
    assert model is not None
    assert device is not None
    assert parts is not None
    assert needs is not None
    return Prepared(
        # Written down as it was chosen: where a resumed run goes on on another device, it stays.
        config=replace(config, precision=needs.precision),
        model_config=model.config,
        split=parts,
        device=device,
        precision=needs.precision,
        needs=needs,
        facts=_facts(config, model, needs.parameters, parts, dataset.scan, (val_dataset or dataset).scan),
        notes=(
            f"device: {describe(device)}, {needs.precision}"
            + (" (chosen by auto)" if config.device == "auto" else ""),
            *([f"tokenizer: {tokenizer.note}"] if tokenizer is not None and tokenizer.note else []),
            *(cycles or []),
            *_provision(config, needs.parameters),
            *_slower_than_need_be(config, device),
        ),
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


@dataclass(frozen=True)
class _Model:
    config: ModelConfig
    carried: dict[str, Any]
    """What its checkpoints carry on from the file or the tokenizer."""
    base: dict[str, Any] | None
    """The file that it starts from."""


def _corpus(path: Path) -> _Corpus:
    shards = ShardDir(path)
    return _Corpus(shards, shards.scan())


def _tokenizer(path: Path) -> LoadedTokenizer:
    from apr.data.tokenizers import load_tokenizer

    return load_tokenizer(path)


def _attempt_model(
    refusals: Refusals, config: PretrainConfig, tokenizer: LoadedTokenizer | None, dataset: _Corpus | None
) -> _Model | None:
    """The model, or None where it is refused, or where what would give its vocabulary was."""
    if config.init is not None:
        return refusals.attempt(_model_of_file, config.init, tokenizer)
    if dataset is None or (tokenizer is None and config.tokenizer is not None):
        return None
    return refusals.attempt(_model_from_scratch, config, tokenizer, dataset)


def _model_from_scratch(
    config: PretrainConfig, tokenizer: LoadedTokenizer | None, dataset: _Corpus
) -> _Model:
    assert config.arch is not None
    sizes = (tokenizer.vocab_size if tokenizer else None, dataset.shards.vocab_size, dataset.scan.max_id + 1)
    vocab_size = next(size for size in sizes if size is not None)
    carried = dict.fromkeys(_CARRIED_KEYS[1:]) | (tokenizer.metadata() if tokenizer is not None else {})
    return _Model(load_arch(config.arch, vocab_size), carried, None)


def _model_of_file(path: Path, tokenizer: LoadedTokenizer | None) -> _Model:
    with load(path, verify="full") as file:
        try:
            model_config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        except RefusedError as error:
            raise type(error)(f"{path}: {error}") from None
        match(model_config, file)
        inside = {key: value for key, value in file.metadata.items() if key.startswith(_TOKENIZER_KEYS)}
        if tokenizer is not None and not {VOCABULARY, HF_TOKENIZER} & inside.keys():
            inside = tokenizer.metadata()
        carried = dict.fromkeys(_CARRIED_KEYS[1:])
        carried |= {key: file.metadata[key] for key in _CARRIED_KEYS if key in file.metadata}
        base = {"name": path.name, "size": file.nbytes, "crc32": _crc32(file)}
        return _Model(model_config, carried | inside, base)


def _check_values(path: Path, model_config: ModelConfig) -> None:
    with load(path) as file:
        check_values(model_config, file)


def _crc32(file: AprFile) -> str:
    crc = file.footer
    if crc is None:
        with Path(file.path).open("rb") as raw:
            crc = 0
            while chunk := raw.read(1 << 22):
                crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


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
    found = problems(corpus.scan, eos, unk)
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
    model: _Model,
    parameters: int,
    parts: Split,
    scan: Scan,
    val_scan: Scan,
) -> dict[str, Any]:
    training = {
        "mode": config.mode,
        "seed": config.seed,
        "seq_length": config.seq_length,
        "batch_size": config.batch_size,
        "grad_accum": config.grad_accum,
        "val_tokens": config.val_tokens,
        "base_model": model.base,
        "data": {
            "total_tokens": scan.total_tokens,
            "corpus_sha256": scan.corpus_sha256,
            "manifest_sha256": parts.train.shards.manifest_sha256,
        },
        "held_out": {
            "corpus_sha256": val_scan.corpus_sha256,
            "start": parts.held_out.start,
            "stop": parts.held_out.stop,
        },
    }
    sizes = {"model_type": model.config.family, "param_count": parameters, **model.config.to_metadata()}
    facts = {**sizes, **model.carried}
    plain: dict[str, Any] = json.loads(json.dumps({**facts, "training": training}))  # as a checkpoint has it
    return plain

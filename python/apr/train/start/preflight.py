"""What is checked before the first step. Each problem is one line, and all are reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

import torch

from apr.container.metadata import HF_TOKENIZER
from apr.contracts.verdict import load_decidable
from apr.data.corpus_check import corpus_problems
from apr.data.identity import MANIFEST_KEY, MODEL_KEY
from apr.data.same_tokenizer import check_same_tokenizer, facts_of_shards, facts_of_tokenizer, unknown_note
from apr.data.scan import Scan, common_shards
from apr.data.shards import ShardDir
from apr.data.split import split_dataset
from apr.errors import AprError, PreflightError, RefusedError, UsageError
from apr.model.init import load_arch
from apr.plurals import counted
from apr.train import rundir
from apr.train.checkpoint.metadata import CheckpointMetadata, TrainingFacts
from apr.train.checkpoint.resume import find_resume_point
from apr.train.config import MODES
from apr.train.machine.device import choose_device, default_precision, describe
from apr.train.parallel.world import ALONE, World
from apr.train.prepared import Prepared
from apr.train.record.tensorboard import check_tensorboard
from apr.train.sampler import make_sampler
from apr.train.start import origin
from apr.train.start.fitting import check_memory, find_micro_batch
from apr.train.start.needs import check_disk, estimate_needs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any

    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.same_tokenizer import TokenizerFacts
    from apr.data.split import Split
    from apr.model.config import ModelConfig
    from apr.train.checkpoint.resume import ResumePoint
    from apr.train.config import PretrainConfig
    from apr.train.prepared import Needs
    from apr.train.start.origin import Origin

# Compiling takes up to 20 s. It saves some 50 ms of a step that is bound by launching kernels (SmolLM2-135M
# at 16 x 512 on an H100: 84 to 29 ms), and about as long as the step takes where it is not.
_COMPILE_SECONDS, _SAVED_PER_MICRO_BATCH = 20, 0.05
# A rule of thumb for training from scratch; the compute-optimal number is about 20
# (https://arxiv.org/abs/2203.15556).
_ENOUGH_TOKENS_PER_PARAMETER = 10


P = ParamSpec("P")
T = TypeVar("T")


class Problems:
    """Collects errors: a `with` block ends at the error it raises, and what follows the block still runs."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, PreflightError):
            self.errors += error.problems
        elif isinstance(error, (AprError, RefusedError, OSError)):
            self.errors.append(error)
        else:
            return False
        return True

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what the function returns, or None if it raises an error, which is collected."""
        with self:
            return function(*args, **kwargs)
        return None

    def raise_if_any(self) -> None:
        """Raise the only error, or all of them as one.

        Raises:
            PreflightError: there are several errors.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise PreflightError(self.errors)


@dataclass(frozen=True, eq=False)
class _Corpus:
    """A shard directory and the scan of its ids."""

    shards: ShardDir
    scan: Scan

    @classmethod
    def open(cls, path: Path) -> Self:
        shards = ShardDir(path)
        # The manifest keeps the scan when the run starts.
        return cls(shards, shards.scan(keep=False))


def prepare(config: PretrainConfig, world: World = ALONE) -> Prepared:
    """Check a run's options against its files and this machine. Nothing is written.

    Checks that do not depend on each other all run, so that one call reports everything that is wrong.

    Args:
        config: the options of the run.
        world: its ranks; this process checks what it sees itself.

    Raises:
        AprError: the init file is not valid.
        FileNotFoundError: a file or directory does not exist.
        RefusedError: the run cannot start, or should not; the message says what to do.
        PreflightError: several of these.
    """
    problems = Problems()
    attempt = problems.attempt
    changes: list[str] = []
    if config.resume:
        # Not collected: the run's own options decide what everything else is checked against.
        rundir.check_run_dir(config)
        config = rundir.resumed_config(config, world.size)
        attempt(rundir.check_new_paths, config)
        changes = _changes(config)
    else:
        attempt(rundir.check_run_dir, config)
        attempt(config.check_warmup)
        config = attempt(config.over_ranks, world.size) or config
    if config.deterministic and world.size & (world.size - 1):
        attempt(_refuse_ranks, world.size)
    local_rank = None if world.size == 1 else world.local_rank
    device = attempt(choose_device, config.device, local_rank=local_rank)
    if config.contract is not None:
        attempt(load_decidable, config.contract)
    if config.tensorboard:
        attempt(check_tensorboard)
    # Before the model, which a resumed run takes from its checkpoint: --init may be gone by then.
    resume_point = attempt(find_resume_point, config.run_dir) if config.resume else None
    dataset = attempt(_Corpus.open, config.dataset)
    val_dataset = None if config.val_dataset is None else attempt(_Corpus.open, config.val_dataset)
    tokenizer = _load_tokenizer(config, resume_point, problems)
    # The model comes after the data and the tokenizer: from scratch, one of them gives its vocabulary's size.
    start = _find_model(config, resume_point, dataset, tokenizer, problems)
    if start is not None:
        _check_model(start.model, config, tokenizer, problems)
    reported = len(problems.errors)
    tokenizers = _check_tokenizers(start, tokenizer, (dataset, val_dataset), problems)
    # Whatever else is wrong with ids and sizes follows from another tokenizer.
    is_another = len(problems.errors) > reported
    for corpus in (dataset, val_dataset):
        if corpus is not None:
            _check_corpus(corpus, tokenizer, start, problems, by_size=not is_another)
    sampler = None
    if config.sample_prompt is not None and start is not None:
        sampler = attempt(make_sampler, config.sample_prompt, start.model, start.carried, config.tokenizer)
    parts = _split(config, dataset, val_dataset, problems)
    done = 0 if resume_point is None or resume_point.last is None else resume_point.last.step
    if done > config.num_steps:
        attempt(_refuse_fewer_steps, config, done)
    compiled, why = _compiles(config, device or torch.device("cpu"), config.num_steps - done)
    micro_batch: list[str] = []
    if config.micro_batch is not None and start is not None and device is not None and not problems.errors:
        with problems:
            config, micro_batch = _split_steps(config, start.model, device, world, compiled=compiled)
    needs = None if start is None else _check_needs(config, start, device, problems, compiled=compiled)
    problems.raise_if_any()

    # Each of these is None only if a problem was collected.
    assert dataset is not None
    assert start is not None
    assert device is not None
    assert parts is not None
    assert needs is not None
    return Prepared(
        # The chosen precision is written to config.yaml: a run resumed on another device keeps it.
        config=config.resolved(needs.precision, compiled=compiled),
        model_config=start.model,
        split=parts,
        device=device,
        needs=needs,
        metadata=_metadata(
            config, start, needs.parameters, parts, dataset.scan, (val_dataset or dataset).scan, tokenizers
        ),
        notes=(
            *_notes(config, device, needs, len(parts.train), tokenizer, tokenizers),
            *_rank_note(config, world),
            *_untrained_note(config, start),
            why,
            *micro_batch,
            *changes,
        ),
        weights=start.weights,
        resume_point=resume_point,
        sampler=sampler,
        world=world,
    )


def _changes(config: PretrainConfig) -> list[str]:
    """Return lines about what a resumed run does otherwise than its earlier part."""
    lines = []
    before = rundir.saved_options(config.run_dir)
    if before.get("num_steps") not in {None, config.num_steps}:
        lines.append(
            f"steps: {config.num_steps} instead of {before['num_steps']}; from here on, learning rates are "
            f"those of a run of {counted(config.num_steps, 'step')}"
        )
    former = rundir.former_target(config.run_dir)
    if former is not None and config.target_val_loss is None:
        lines.append(
            f"target: none; {former:g} was the default of the version that began the run "
            f"(pass --target-val-loss {former:g} to keep it)"
        )
    return lines


def _refuse_ranks(ranks: int) -> None:
    raise UsageError(
        f"--deterministic needs a power of two ranks, not {ranks}: each adds up a complete subtree of a "
        "step's micro-batches; use 1, 2, 4 or 8 ranks"
    )


def _split_steps(
    config: PretrainConfig, model: ModelConfig, device: torch.device, world: World, *, compiled: bool
) -> tuple[PretrainConfig, list[str]]:
    """Return the options with the micro-batch that --micro-batch asks for, and a line if it was chosen."""
    if isinstance(config.micro_batch, int):
        return config.split_into(config.micro_batch), []
    resolved = config.resolved(config.precision or default_precision(device), compiled=compiled)
    # Each rank has a GPU of its own, and a CPU's memory is that of all ranks of its host.
    sharing = world.hosts.count(world.hosts[world.rank]) if device.type == "cpu" else 1
    size, why = find_micro_batch(resolved, model, device, sharing=sharing)
    return config.split_into(size), [why]


def _refuse_fewer_steps(config: PretrainConfig, done: int) -> None:
    raise RefusedError(
        f"{config.run_dir}: already trained for {counted(done, 'step')}, more than --num-steps "
        f"{config.num_steps}; pass at least --num-steps {done}",
        path=config.run_dir,
    )


def _load_tokenizer(
    config: PretrainConfig, resume_point: ResumePoint | None, problems: Problems
) -> LoadedTokenizer | None:
    if config.tokenizer is None:
        return None
    has_checkpoint = resume_point is not None and resume_point.last is not None
    if has_checkpoint and not config.tokenizer.exists():
        return None  # the checkpoint carries what is needed of it
    # Imported here: a run without --tokenizer does not need the tokenizers package.
    from apr.data.tokenizers import load_tokenizer

    return problems.attempt(load_tokenizer, config.tokenizer)


def _find_model(
    config: PretrainConfig,
    resume_point: ResumePoint | None,
    dataset: _Corpus | None,
    tokenizer: LoadedTokenizer | None,
    problems: Problems,
) -> Origin | None:
    """Return the model; None if it is refused, or if what gives the size of its vocabulary was."""
    with problems:
        if resume_point is not None and resume_point.last is not None:
            return origin.from_checkpoint(resume_point.last.path, config.init, config.arch)
        if config.init is not None:
            return origin.from_file(config.init, tokenizer)
        assert config.arch is not None
        if dataset is None or (tokenizer is None and config.tokenizer is not None):
            load_arch(config.arch, 1)  # what is wrong with the file does not depend on the data
            return None
        if tokenizer is not None:
            vocab_size = tokenizer.vocab_size
        elif dataset.shards.vocab_size is not None:
            vocab_size = dataset.shards.vocab_size
        else:
            # Without a tokenizer and a manifest that names it, the ids are all that is known about the
            # vocabulary.
            vocab_size = dataset.scan.max_id + 1
        return origin.from_scratch(config.arch, vocab_size, tokenizer)
    return None


def _check_model(
    model: ModelConfig, config: PretrainConfig, tokenizer: LoadedTokenizer | None, problems: Problems
) -> None:
    with problems:
        if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
            raise RefusedError(
                f"{tokenizer.source}: the vocabulary has {counted(tokenizer.vocab_size, 'id')}, but the "
                f"model's only {model.vocab_size}; pass the model's own tokenizer",
                path=tokenizer.source,
            )
    with problems:
        if config.seq_length > model.max_position_embeddings:
            source = str(config.init or config.arch)
            raise RefusedError(
                f"{source}: --seq-length {config.seq_length} is more than the model's "
                f"{model.max_position_embeddings} positions; use --seq-length "
                f"{model.max_position_embeddings} or less",
                path=source,
            )


def _check_corpus(
    corpus: _Corpus,
    tokenizer: LoadedTokenizer | None,
    start: Origin | None,
    problems: Problems,
    *,
    by_size: bool,
) -> None:
    """Check that a corpus looks like text, and `by_size` that its ids fit the model and the tokenizer."""
    path, encoded_with = corpus.shards.path, corpus.shards.vocab_size
    model = None if start is None else start.model
    with problems:
        eos, unk = _special_ids(corpus.shards, tokenizer, start)
        oddities = corpus_problems(corpus.scan, eos, unk)
        if oddities:
            raise RefusedError(f"{path}: does not look like text: {'; '.join(oddities)}", path=path)
    if corpus.scan.is_foreign or not by_size:
        return  # what foreign files contain is no id of any vocabulary
    with problems:
        if model is not None and encoded_with is not None and encoded_with > model.vocab_size:
            raise RefusedError(
                f"{path}: encoded with a vocabulary of {encoded_with} ids, but the model has only "
                f"{model.vocab_size}; encode with the model's tokenizer",
                path=path,
            )
        # By the ids themselves: a manifest may be silent about its vocabulary, or wrong.
        last = max(corpus.scan.shards, key=lambda shard: shard.max_id)
        if model is not None and last.max_id >= model.vocab_size:
            raise RefusedError(
                f"{path / last.name}: contains id {last.max_id}, but the model's vocabulary has only "
                f"{model.vocab_size} ids; encode with the model's tokenizer",
                path=path / last.name,
            )
    with problems:
        # A tokenizer larger than the model has been refused already, with better advice.
        fits = tokenizer is not None and (model is None or tokenizer.vocab_size <= model.vocab_size)
        # Forms of one tokenizer may differ in size: converters fill a vocabulary up to the model's.
        fits = fits and MANIFEST_KEY not in corpus.shards.manifest
        if tokenizer is not None and fits and encoded_with not in {None, tokenizer.vocab_size}:
            raise RefusedError(
                f"{path}: encoded with a vocabulary of {encoded_with} ids, but {tokenizer.source} has "
                f"{tokenizer.vocab_size}; pass the tokenizer that encoded it",
                path=path,
            )


def _check_tokenizers(
    start: Origin | None,
    tokenizer: LoadedTokenizer | None,
    corpora: Sequence[_Corpus | None],
    problems: Problems,
) -> list[TokenizerFacts]:
    """Check that model, --tokenizer and shards belong to one tokenizer, and return what is known of each."""
    facts = [] if start is None or start.tokenizer is None else [start.tokenizer]
    # A tokenizer larger than the model has been refused already, with better advice.
    if tokenizer is not None and (start is None or tokenizer.vocab_size <= start.model.vocab_size):
        facts.append(facts_of_tokenizer(tokenizer))
    facts += [facts_of_shards(c.shards.path, c.shards.manifest) for c in corpora if c is not None]
    agreeing: list[TokenizerFacts] = []
    for second in facts:
        with problems:
            # One line for each that is odd, not for each pair.
            for first in agreeing:
                check_same_tokenizer(first, second)
            agreeing.append(second)
    return facts


def _special_ids(
    shards: ShardDir, tokenizer: LoadedTokenizer | None, start: Origin | None
) -> tuple[int | None, int | None]:
    """Return the ids that end a text and that stand for unknown text; None where they are not known."""
    if tokenizer is not None:
        return tokenizer.eos_id, tokenizer.unk_id
    carried: Mapping[str, Any] = {} if start is None else start.carried
    own = None if start is None or start.tokenizer is None else start.tokenizer.special_ids
    if own is not None and HF_TOKENIZER in carried:
        return own  # a whole tokenizer.json has no keys for them
    eos = shards.manifest.get("eos_token_id", carried.get("tokenizer.eos_token_id"))
    unk = shards.manifest.get("unk_token_id", carried.get("tokenizer.unknown_token_id"))
    # GPT-2's tokenizers use one id for both. It then only ends texts, and may be frequent.
    return eos, None if unk == eos else unk


def _split(
    config: PretrainConfig, dataset: _Corpus | None, val_dataset: _Corpus | None, problems: Problems
) -> Split | None:
    """Return the training and the held-out windows; None if they are refused."""
    if dataset is None or (val_dataset is None and config.val_dataset is not None):
        return None
    held_out = None if val_dataset is None else val_dataset.shards
    parts = problems.attempt(
        split_dataset, dataset.shards, held_out, config.seq_length, config.evaluated_tokens
    )
    with problems:
        if val_dataset is not None:
            # Equal hashes, whatever the names are: a copied shard is the same text.
            for trained_on, held_out_shard in common_shards(dataset.scan.shards, val_dataset.scan.shards):
                raise RefusedError(
                    f"{config.val_dataset}/{held_out_shard}: same bytes as {config.dataset}/{trained_on}; "
                    "held-out shards must not be trained on"
                )
    with problems:
        if parts is not None and not config.allow_shard_cycle:
            needed, available = config.num_steps * config.windows_per_step, len(parts.train)
            if needed > available:
                steps = available // config.windows_per_step
                shorter = f"--num-steps {steps}" if steps else "a smaller --batch-size"
                raise RefusedError(
                    f"{config.dataset}: the run needs {counted(needed, 'window')} of "
                    f"{counted(config.seq_length, 'token')}, but there are only {available:,}; "
                    f"use {shorter}, encode more text, or pass --allow-shard-cycle",
                    path=config.dataset,
                )
    return parts


def _check_needs(
    config: PretrainConfig, start: Origin, device: torch.device | None, problems: Problems, *, compiled: bool
) -> Needs:
    """Check memory, disk space and, if the run is refused anyway, the values of the weights."""
    needs = estimate_needs(config, start.model, device or torch.device("cpu"), compiled=compiled)
    problems.attempt(check_disk, needs, config.run_dir)
    if device is not None:
        problems.attempt(
            check_memory, config.resolved(needs.precision, compiled=compiled), start.model, needs
        )
    # A run that starts checks all values while it fills the model. This one will not get that far.
    if problems.errors:
        problems.attempt(start.check_values)
    return needs


def _metadata(
    config: PretrainConfig,
    start: Origin,
    parameters: int,
    parts: Split,
    data: Scan,
    held_out: Scan,
    tokenizers: Sequence[TokenizerFacts],
) -> CheckpointMetadata:
    training: TrainingFacts = {
        "mode": config.mode,
        "seed": config.seed,
        "seq_length": config.seq_length,
        "batch_size": config.batch_size,
        # Of all ranks together: the same run on another number of ranks writes the same bytes.
        "grad_accum": config.windows_per_step // config.batch_size,
        "val_tokens": config.evaluated_tokens,
        "base_model": start.base,
        "data": {
            "total_tokens": data.total_tokens,
            "corpus_sha256": data.corpus_sha256,
            "manifest_sha256": parts.train.shards.manifest_sha256,
        },
        "held_out": {
            "corpus_sha256": held_out.corpus_sha256,
            "start": parts.held_out.start,
            "stop": parts.held_out.stop,
        },
    }
    # Recorded for a model whose file does not contain its tokenizer; the first is the model's own.
    identity = next((one.identity for one in tokenizers if one.identity is not None), None)
    carried = start.carried if identity is None else start.carried | {MODEL_KEY: identity}
    return CheckpointMetadata(start.model, parameters, carried, training)


def _notes(
    config: PretrainConfig,
    device: torch.device,
    needs: Needs,
    windows: int,
    tokenizer: LoadedTokenizer | None,
    tokenizers: Sequence[TokenizerFacts],
) -> tuple[str, ...]:
    """Return lines for the user: what was chosen, and warnings."""
    chosen = " (chosen by auto)" if config.device == "auto" else ""
    notes = [f"device: {describe(device)}, {needs.precision}{chosen}"]
    if tokenizer is not None and tokenizer.note:
        notes.append(f"tokenizer: {tokenizer.note}")
    if (unknown := unknown_note(tokenizers)) is not None:
        notes.append(unknown)
    visits = config.num_steps * config.windows_per_step / windows
    if visits > 1:
        notes.append(
            f"the run makes {visits:.1f} epochs (passes over the {counted(windows, 'training window')})"
        )
    tokens = config.num_steps * config.tokens_per_step
    enough = tokens >= _ENOUGH_TOKENS_PER_PARAMETER * needs.parameters
    if config.init is None and not enough and not config.force_under_provisioned:
        notes.append(
            f"warning: {tokens:,} training tokens are only {tokens / needs.parameters:.2g} per parameter; "
            f"use at least {_ENOUGH_TOKENS_PER_PARAMETER} from scratch (--force-under-provisioned hides this)"
        )
    return tuple(notes)


def _rank_note(config: PretrainConfig, world: World) -> list[str]:
    """Return a line that says what all ranks together take in a step, if there are several."""
    if world.size == 1:
        return []
    hosts = len(set(world.hosts))
    where = f" on {hosts} hosts" if hosts > 1 else ""
    whole = f"{counted(config.windows_per_step, 'window')}, {counted(config.tokens_per_step, 'token')}"
    return [
        f"ranks: {world.size}{where}, each with {config.grad_accum} x "
        f"{counted(config.batch_size, 'window')} per step; together {whole}"
    ]


def _untrained_note(config: PretrainConfig, start: Origin) -> list[str]:
    """Return a line if --init holds random weights: the defaults of its mode are for trained ones."""
    if start.base is None or not start.base.get("untrained", False) or start.weights != config.init:
        return []
    note = f"note: {config.init} was never trained (its norms and biases have their initial values); peak lr "
    if config.lr is not None:
        return [f"{note}{config.lr:g}, {_as_asked(config)}"]
    usual = MODES["from-scratch"].lr
    return [
        f"{note}{config.mode_defaults.lr:g} is the default of --mode {config.mode}, but random weights "
        f"usually take --lr {usual:g}, the default of from-scratch"
    ]


def _as_asked(config: PretrainConfig) -> str:
    """Return why an option has its value. A resumed run does not know which of them were asked for."""
    return "as when the run began" if config.resume else "as asked"


def _compiles(config: PretrainConfig, device: torch.device, steps: int) -> tuple[bool, str]:
    """Return whether a run compiles its steps, and a line that says why.

    Args:
        config: the options of the run.
        device: what it computes on.
        steps: number of steps that are left.
    """
    if config.compile is not None:
        return config.compile, f"compile: {'on' if config.compile else 'off'}, {_as_asked(config)}"
    if device.type != "cuda":
        return False, "compile: off (auto: it gains little on a CPU)"
    saved = steps * (config.grad_accum or 1) * _SAVED_PER_MICRO_BATCH
    gain = (
        f"{counted(steps, 'step')} would gain {saved:.0f} s, and compiling takes up to {_COMPILE_SECONDS} s"
    )
    worth = saved > _COMPILE_SECONDS
    return worth, f"compile: {'on' if worth else 'off'} (auto: {gain})"

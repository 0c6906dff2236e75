"""The options of a run.

Each option is one field; its annotation and the text below it hold every fact about it (`apr.options`). The
sections are the groups of `apr pretrain --help`; `PretrainConfig` has the fields of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt

from apr.contracts.shipped import is_shipped
from apr.errors import OptionsError, UsageError
from apr.options import Alias, Metavar, Negatable, Unset, accepts_aliases, check_options, options_of

Mode = Literal["finetune", "from-scratch", "from-init"]
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class ModeDefaults:
    """The values that a mode sets where the option itself is not given."""

    lr: float
    warmup_steps: int
    first_val_loss_cap: float | None
    """Cap on the held-out loss of the first evaluation after training began, in nats per token; None means
    twice ln V."""


# A pretrained model needs small steps to keep what it knows; random weights need larger ones and a longer
# warm-up. The ecosystem's tools have two words for a start from a file, which mean the same.
MODES: dict[Mode, ModeDefaults] = {
    "finetune": ModeDefaults(5e-5, 100, 10.0),
    "from-init": ModeDefaults(5e-5, 100, 10.0),
    "from-scratch": ModeDefaults(3e-4, 1000, None),
}
# An evaluation of the default size has a quarter of the tokens that are trained on, within these limits:
# fewer give no stable figure, and more would not make it better.
_MIN_VAL_TOKENS, _MAX_VAL_TOKENS = 16_384, 262_144


# Help and the run read the same table, so that a default cannot be shown as one number and be another.
def _by_mode(name: str) -> Unset:
    """Return the defaults that the modes set for an option, as help shows them."""
    modes: dict[float, list[str]] = {}
    for mode, defaults in MODES.items():
        modes.setdefault(getattr(defaults, name), []).append(mode)
    return Unset("; ".join(f"{value:g} for {' and '.join(names)}" for value, names in modes.items()))


class Resume(Enum):
    """What `--resume` may change about an option."""

    FIXED = "Nothing: the option decides what is computed."
    FREE = "Everything: the option decides nothing that is computed."
    MOVABLE = "The path, once there is a checkpoint, which knows the contents by size and hash."
    SPLIT = "The value, while windows per step (on all ranks together) and so the order of data stay."
    EXTENDABLE = "The value may grow with --extend, and shrink with --shorten."
    NOT_SAVED = "The option concerns one call of the program and is not written to config.yaml."


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Token shards, and the order in which they are read."""

    dataset: Annotated[Path, Alias("--shards-dir"), Resume.MOVABLE]
    """Directory of token shards to train on."""
    val_dataset: Annotated[
        Path | None,
        Alias("--val-shard"),
        Unset("the last tokens of --dataset, which are then left out of training"),
        Resume.MOVABLE,
    ] = None
    """Directory of token shards to evaluate on."""
    tokenizer: Annotated[Path | None, Unset("the tokenizer in --init, if any"), Resume.MOVABLE] = None
    """Tokenizer of the shards: a directory, a tokenizer.json or a model file. Its vocabulary is checked, and
    checkpoints contain it."""
    seq_length: Annotated[int, Ge(1), Resume.FIXED] = 1024
    """Window length in tokens."""
    shuffle: Annotated[bool, Resume.FIXED] = True
    """Read windows in a pseudo-random order that --seed determines, instead of in stored order."""
    # torch's generators take seeds up to 2^63 - 1.
    seed: Annotated[int, Ge(0), Le(2**63 - 1), Resume.FIXED] = 42
    """Seed of the window order and of random initial weights."""
    allow_shard_cycle: Annotated[bool, Resume.FIXED] = False
    """Read the shards again if --num-steps needs more windows than they contain. Without this flag, such a
    run is an error."""
    force_under_provisioned: Annotated[bool, Resume.FREE] = False
    """Do not warn about fewer than ten training tokens per parameter in a run from scratch."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The weights or the architecture that training starts from."""

    mode: Annotated[Mode, Resume.FIXED] = "finetune"
    """Start from a model file (finetune and from-init, which mean the same) or from random weights
    (from-scratch). The mode sets the defaults of --lr and --warmup-steps."""
    init: Annotated[Path | None, Unset("none"), Resume.MOVABLE] = None
    """Model file (.apr) to start from. Required, except with --mode from-scratch."""
    arch: Annotated[str | None, Metavar("PRESET|FILE"), Unset("none"), Resume.MOVABLE] = None
    """Architecture for --mode from-scratch: a preset (qwen2.5-0.5b, smollm2-135m, qwen2-4m), a YAML file of
    sizes, or transformers' config.json. A YAML file has the keys architecture (such as qwen2 or llama),
    hidden_size, num_layers, num_heads, num_kv_heads, intermediate_size, max_position_embeddings, rope_theta,
    rms_norm_eps and tie_word_embeddings."""


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """AdamW with linear warm-up and cosine decay."""

    num_steps: Annotated[int, Ge(1), Alias("--steps"), Resume.EXTENDABLE] = 1000
    """Number of optimizer steps."""
    max_minutes: Annotated[float | None, Gt(0), Unset("no limit"), Resume.FREE] = None
    """Save and stop in time to end within this many minutes of the start, start-up and saving included; exit
    code 124. --resume continues, for as many minutes again."""
    batch_size: Annotated[int, Ge(1), Resume.SPLIT] = 16
    """Windows per micro-batch of each rank; a run in one process has one rank."""
    grad_accum: Annotated[
        int | None, Ge(1), Unset("what --global-batch leaves to each rank, or else 1"), Resume.SPLIT
    ] = None
    """Micro-batches of each rank per optimizer step."""
    global_batch: Annotated[
        int | None, Ge(1), Unset("--batch-size x --grad-accum x the number of ranks"), Resume.SPLIT
    ] = None
    """Windows per optimizer step on all ranks together."""
    micro_batch: Annotated[
        int | Literal["auto"] | None, Metavar("N|auto"), Ge(1), Unset("--batch-size"), Resume.NOT_SAVED
    ] = None
    """Split the windows of a step into micro-batches of this many instead: a divisor of --batch-size x
    --grad-accum, or auto for the largest that fits into memory. The tokens of a step stay the same."""
    lr: Annotated[float | None, Gt(0), _by_mode("lr"), Resume.FIXED] = None
    """Peak learning rate."""
    warmup_steps: Annotated[
        int | None,
        Ge(0),
        Unset(f"{_by_mode('warmup_steps').meaning}; at most --num-steps / 10"),
        Resume.FIXED,
    ] = None
    """Steps of linear warm-up; the last of them has the peak learning rate. With 0, as with 1, it is the
    first step."""
    min_lr_ratio: Annotated[float, Ge(0), Le(1), Resume.FIXED] = 0.01
    """Learning rate of the last step, at the end of the cosine decay, as a fraction of the peak."""
    weight_decay: Annotated[float, Ge(0), Resume.FIXED] = 0.01
    """Weight decay of matrices. Norms, biases and embeddings are not decayed."""
    beta1: Annotated[float, Ge(0), Lt(1), Resume.FIXED] = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: Annotated[float, Ge(0), Lt(1), Resume.FIXED] = 0.95
    """Decay rate of AdamW's second moment."""
    eps: Annotated[float, Gt(0), Resume.FIXED] = 1e-8
    """Term added to AdamW's denominator for numerical stability."""
    grad_clip: Annotated[float, Gt(0), Resume.FIXED] = 1.0
    """Maximum gradient norm. Larger gradients are scaled down to it."""
    skip_spikes: Annotated[bool, Resume.FIXED] = False
    """Skip the update of a step whose loss is more than 6 standard deviations above the mean of the last 100
    steps."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When held-out loss is measured, and when it ends the run."""

    eval_every: Annotated[int, Ge(1), Alias("--steps-per-epoch"), Resume.FIXED] = 100
    """Number of steps between evaluations. Each evaluation also writes a checkpoint."""
    val_tokens: Annotated[
        int | None,
        Ge(1),
        Unset(
            f"a quarter of the tokens that are trained on, but at least {_MIN_VAL_TOKENS:,} and at most "
            f"{_MAX_VAL_TOKENS:,}"
        ),
        Resume.FIXED,
    ] = None
    """Number of held-out tokens per evaluation. Without --val-dataset, this many tokens are set aside, but at
    most a tenth of --dataset."""
    target_val_loss: Annotated[float | None, Gt(0), Unset("none"), Resume.FREE] = None
    """Held-out loss to reach, in nats per token. It decides between the statuses TARGET_MET and
    BUDGET_SPENT."""
    stop_at_target: Annotated[bool, Resume.FREE] = True
    """Stop at the first evaluation that meets --target-val-loss. Runs with --contract never stop there."""
    patience: Annotated[int, Ge(1), Resume.FREE] = 5
    """Number of evaluations without a new best held-out loss after which the run stops early."""
    min_evaluations: Annotated[int, Ge(0), Alias("--min-epochs"), Resume.FREE] = 3
    """Number of evaluations before --patience can stop the run."""
    contract: Annotated[str | None, Metavar("NAME|FILE"), Unset("none"), Resume.FREE] = None
    """Contract to check at the end of the run: a YAML file, or the name of one that ships with apr, such as
    init-finetune. It never changes the exit code."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Which checkpoints are written, and resuming from them."""

    keep: Annotated[int, Ge(1), Resume.FREE] = 2
    """Number of checkpoints to keep besides the best one, counted separately for evaluations and
    --save-every."""
    save_every: Annotated[int | None, Ge(1), Unset("only at each evaluation"), Resume.FREE] = None
    """Number of steps between checkpoints, in addition to those at each evaluation."""
    save_dtype: Annotated[Precision, Resume.FREE] = "fp32"
    """With bf16, also write the final weights in bfloat16 to RUN_DIR/final.apr. Checkpoints are always
    float32."""
    resume: Annotated[bool, Resume.NOT_SAVED] = False
    """Resume from the last checkpoint in the run directory. Options that are not passed are read
    from its config.yaml."""
    extend: Annotated[bool, Resume.NOT_SAVED] = False
    """Allow --resume to raise --num-steps."""
    shorten: Annotated[bool, Resume.NOT_SAVED] = False
    """Allow --resume to lower --num-steps, down to the steps that are done."""


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """The device, and how it computes."""

    device: Annotated[str, Metavar("DEVICE"), Resume.FREE] = "auto"
    """Device to train on: auto, cpu, cuda or cuda:N. Only auto chooses one; a missing device is an error."""
    precision: Annotated[Precision | None, Unset("bf16 on CUDA, fp32 on the CPU"), Resume.FIXED] = None
    """Number format of the computation. Weights and optimizer state are always float32."""
    compile: Annotated[
        bool | None,
        Negatable(),
        Unset("auto: on where a GPU's run is long enough to gain from it"),
        Resume.FIXED,
    ] = None
    """Compile each layer with torch.compile. On a GPU, also capture the step in CUDA graphs."""
    activation_checkpointing: Annotated[bool, Resume.FREE] = False
    """Keep only the input of each layer for the backward pass, and compute the layer again there: less
    memory, about a quarter more time per step, the same gradients."""
    deterministic: Annotated[bool, Resume.FIXED] = False
    """Sum in a fixed order, so that equal runs write identical files, also on another number of ranks: 1, 2,
    4 or 8 of them, with the same --batch-size. On a CPU, use one thread, without which equal runs need equal
    numbers of threads."""
    shard_model: Annotated[bool, Resume.FREE] = False
    """Divide the model, its gradients and the optimizer's state among the ranks (FSDP2), for models that do
    not fit on one GPU. Checkpoints are the same files."""
    rank_timeout: Annotated[float, Gt(0), Resume.FREE] = 300.0
    """Seconds that a rank waits for another one after the first step. Then the run ends and names the one
    that does not answer. In the first step it waits half an hour."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    run_dir: Annotated[Path, Alias("--output-dir"), Resume.FREE]
    """Directory for everything that the run writes."""
    tensorboard: Annotated[bool, Resume.FREE] = False
    """Write TensorBoard event files to RUN_DIR/tensorboard."""
    sample_prompt: Annotated[str | None, Metavar("TEXT"), Unset("none"), Resume.FREE] = None
    """Continue this text at each evaluation, print it, and keep it in RUN_DIR/samples.jsonl."""
    force: Annotated[bool, Resume.NOT_SAVED] = False
    """Move a run that is already in the run directory to RUN_DIR.bak-N and start over."""


# Dataclass fields come from the last base first; config.yaml lists them in that order.
@accepts_aliases
@dataclass(frozen=True, kw_only=True)
class PretrainConfig(
    OutputOptions,
    HardwareOptions,
    CheckpointOptions,
    EvaluationOptions,
    OptimizationOptions,
    ModelOptions,
    DataOptions,
):
    """Options of `pretrain`; the flags of `apr pretrain` have the same names.

    Raises:
        OptionsError: values are out of range or contradict each other; it is a UsageError and has one line
            per problem.
    """

    def __post_init__(self) -> None:
        problems = check_options(self) or _contradictions(self)
        if problems:
            raise OptionsError(problems)

    @property
    def mode_defaults(self) -> ModeDefaults:
        """The values that the mode sets."""
        return MODES[self.mode]

    @property
    def windows_per_step(self) -> int:
        """Number of windows that one optimizer step takes, on all ranks together."""
        return self.global_batch or self.batch_size * (self.grad_accum or 1)

    @property
    def ranks(self) -> int:
        """Number of ranks that share a step, once `over_ranks` has filled in their parts."""
        return self.windows_per_step // (self.batch_size * (self.grad_accum or 1))

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens that one optimizer step trains on."""
        return self.windows_per_step * self.seq_length

    @property
    def evaluated_tokens(self) -> int:
        """Number of held-out tokens that an evaluation asks for."""
        if self.val_tokens is not None:
            return self.val_tokens
        quarter = self.num_steps * self.tokens_per_step // 4
        return min(_MAX_VAL_TOKENS, max(_MIN_VAL_TOKENS, quarter))

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows step number `step`, counted from 1; one follows the last step."""
        return step % self.eval_every == 0 or step == self.num_steps

    def evaluations_after(self, done: int) -> int:
        """Return the number of evaluations that are still to come when `done` steps are done."""
        whole = self.num_steps // self.eval_every - done // self.eval_every
        partial = self.num_steps % self.eval_every != 0 and done < self.num_steps
        return whole + partial

    def saves_on_the_way(self, step: int) -> bool:
        """Whether --save-every asks for a checkpoint after `step` steps; an evaluation has its own."""
        return self.save_every is not None and step % self.save_every == 0 and not self.evaluates_after(step)

    @property
    def micro_batches(self) -> list[int]:
        """The sizes of micro-batches that a rank's windows of a step can be split into, the largest first."""
        windows = self.batch_size * (self.grad_accum or 1)
        return [size for size in range(windows, 0, -1) if windows % size == 0]

    def split_into(self, micro_batch: int) -> Self:
        """Return the options with the windows of a step split into micro-batches of another size.

        Raises:
            UsageError: the size does not divide the windows of a step.
        """
        if micro_batch not in self.micro_batches:
            windows, sizes = self.micro_batches[0], self.micro_batches
            below = next(size for size in sizes if size < micro_batch)
            raise UsageError(
                f"--micro-batch {micro_batch} does not divide the {windows} windows per step (--batch-size "
                f"{self.batch_size} x --grad-accum {self.grad_accum or 1}); use --micro-batch {below}"
            )
        accum = self.micro_batches[0] // micro_batch
        return replace(self, batch_size=micro_batch, grad_accum=accum, micro_batch=None)

    def check_warmup(self) -> None:
        """Check that warm-up leaves at least one step for the cosine decay.

        Raises:
            UsageError: --warmup-steps is not less than --num-steps.
        """
        if self.warmup_steps is not None and self.warmup_steps >= self.num_steps:
            raise UsageError(
                f"--warmup-steps {self.warmup_steps} must be less than --num-steps {self.num_steps}, so that "
                "steps remain for the cosine decay"
            )

    def over_ranks(self, ranks: int) -> Self:
        """Return the options with --grad-accum filled in, and for several ranks --global-batch.

        Raises:
            UsageError: the ranks cannot divide --global-batch.
        """
        if self.global_batch is None:
            accum = self.grad_accum or 1
            # One rank's config.yaml stays as it always was; another number of ranks needs to know the whole.
            whole = self.batch_size * accum * ranks if ranks > 1 else None
            return replace(self, grad_accum=accum, global_batch=whole)
        at_once = self.batch_size * ranks
        accum, rest = divmod(self.global_batch, at_once)
        sizes = f"--batch-size {self.batch_size}" + (f" on {ranks} ranks" if ranks > 1 else "")
        if rest or not accum:
            raise UsageError(
                f"--global-batch {self.global_batch} is not a multiple of {at_once}, which {sizes} "
                f"{'take' if ranks > 1 else 'takes'} at a time; change one of them"
                + (" or the number of ranks" if ranks > 1 else "")
            )
        if self.grad_accum not in {None, accum}:
            raise UsageError(
                f"--global-batch {self.global_batch} with {sizes} means --grad-accum {accum}, not "
                f"{self.grad_accum}; leave one of them out"
            )
        return replace(self, grad_accum=accum)

    def resolved(self, precision: Precision, *, compiled: bool) -> ResolvedConfig:
        """Return the options of the run itself, with the mode's defaults filled in.

        Args:
            precision: what the run computes in; the default depends on its device.
            compiled: whether it compiles, which by default depends on device and length.
        """
        defaults = self.mode_defaults
        filled: dict[str, Any] = {
            "lr": defaults.lr,
            # A tenth at most: the 1000 steps of from-scratch would be more than the whole of a run of 500.
            "warmup_steps": min(defaults.warmup_steps, self.num_steps // 10),
            "val_tokens": self.evaluated_tokens,
            "grad_accum": 1,
        }
        for option in fields(PretrainConfig):
            value = getattr(self, option.name)
            if value is not None or option.name not in filled:
                filled[option.name] = value
        return ResolvedConfig(**{**filled, "precision": precision, "compile": compiled})

    def inputs(self) -> dict[str, Path]:
        """Return the files and directories that the run reads, by flag; some may not exist."""
        options = options_of(PretrainConfig)
        paths = {
            option.flag: getattr(self, name)
            for name, option in options.items()
            if option.type is Path and name != "run_dir" and getattr(self, name) is not None
        }
        return paths | {options[name].flag: path for name, path in self._named_files().items()}

    def _named_files(self) -> dict[str, Path]:
        """Return the files of options that may also hold the name of something that ships with apr."""
        from apr.model.init import PRESETS

        files = {}
        if self.arch is not None and self.arch not in PRESETS:
            files["arch"] = Path(self.arch)
        if self.contract is not None and not is_shipped(self.contract):
            files["contract"] = Path(self.contract)
        return files

    def to_yaml(self) -> dict[str, Any]:
        """Return what config.yaml holds: all that is needed to run again, with absolute paths."""
        values = {
            name: getattr(self, name)
            for name, option in options_of(PretrainConfig).items()
            if option.marker(Resume) is not Resume.NOT_SAVED
        }
        # A name stays a name. A file is made absolute: --resume may be called from another directory.
        values |= self._named_files()
        if self.global_batch is not None:
            values["grad_accum"] = None  # follows from the number of ranks, which may be another one then
        return {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in values.items()
        }


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(PretrainConfig):
    """The options of a run that has been prepared: nothing is left to the mode or the device."""

    # `field()` drops the inherited default, so that these are required.
    lr: float = field()
    warmup_steps: int = field()
    val_tokens: int = field()
    grad_accum: int = field()
    precision: Precision = field()
    compile: bool = field()


def _contradictions(config: PretrainConfig) -> list[UsageError]:
    """Return what is wrong between options that are each valid."""
    problems = []
    if config.mode == "from-scratch":
        if config.init is not None:
            problems.append("--init cannot be used with --mode from-scratch; leave one of them out")
        if config.arch is None:
            problems.append("--mode from-scratch needs --arch, a preset or a YAML file of sizes")
    else:
        if config.init is None:
            problems.append(
                f"--mode {config.mode} needs --init FILE.apr; to start without one, use --mode from-scratch"
            )
        if config.arch is not None:
            problems.append(
                f"--arch can only be used with --mode from-scratch; --mode {config.mode} reads it from --init"
            )
    problems += [
        f"--{name} can only be used with --resume"
        for name in ("extend", "shorten")
        if getattr(config, name) and not config.resume
    ]
    if config.shard_model and config.deterministic:
        problems.append(
            "--shard-model cannot be used with --deterministic, because FSDP adds in an order of its own; "
            "leave one of them out"
        )
    if config.shard_model and config.sample_prompt is not None:
        problems.append("--sample-prompt cannot be used with --shard-model; use apr generate on a checkpoint")
    if config.resume and config.force:
        problems.append("--resume cannot be used with --force; resume the run, or start over")
    return [UsageError(problem) for problem in problems]
